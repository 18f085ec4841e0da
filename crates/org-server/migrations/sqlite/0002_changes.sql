-- What caches must be made to forget: written in the transaction of each change, removed once it was propagated.
-- Numbers are never used twice: whoever removes a row late must not meet another one.

CREATE TABLE changes (
    id        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    -- When it was written, in milliseconds since 1970.
    at        INTEGER NOT NULL,
    -- JSON: slugs, ids, domains, and digests under which tokens are cached. Never a secret.
    names     TEXT    NOT NULL,
    -- 1: it could not be read; everything was forgotten instead.
    set_aside INTEGER NOT NULL DEFAULT 0
) STRICT;
