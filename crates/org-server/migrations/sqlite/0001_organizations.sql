-- Organisations, their API tokens, and what the server remembers about itself.
-- Times are milliseconds since 1970. Secrets are sealed before they come here; tokens are digests.

CREATE TABLE organizations (
    id            TEXT    NOT NULL PRIMARY KEY,
    slug          TEXT    NOT NULL UNIQUE,
    name          TEXT    NOT NULL,
    plan          TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    settings      TEXT    NOT NULL DEFAULT '{}',
    secrets       TEXT    NOT NULL DEFAULT '{}',
    custom_domain TEXT    UNIQUE,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
    id           TEXT    NOT NULL PRIMARY KEY,
    org_id       TEXT    NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    user_id      TEXT    NOT NULL,
    scopes       TEXT    NOT NULL DEFAULT '[]',
    digest       BLOB    NOT NULL UNIQUE,
    -- Under what validated tokens are cached: to make the caches forget a revoked one.
    cache_digest BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL
) STRICT;

CREATE INDEX tokens_by_org ON tokens (org_id);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);

CREATE TABLE facts (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
