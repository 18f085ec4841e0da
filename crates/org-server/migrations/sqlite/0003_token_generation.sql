-- Under which an organisation's validated tokens are cached. Random, and another one after each revocation.

ALTER TABLE organizations ADD COLUMN token_generation INTEGER NOT NULL DEFAULT 0;

UPDATE organizations SET token_generation = random() & 9223372036854775807;
