-- Version 1. Ids and digests are hexadecimal text, times are milliseconds since 1970, and JSON stands only where
-- nothing is searched by: specs, inventories, manifests, labels, selectors.

-- Everything that ever happened, in order. The tables below are what it comes to.
CREATE TABLE events (
    seq  INTEGER PRIMARY KEY,
    at   INTEGER NOT NULL,
    kind TEXT NOT NULL,
    job  TEXT,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job, seq) WHERE job IS NOT NULL;
CREATE TRIGGER events_are_not_rewritten BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_are_not_removed BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;

CREATE TABLE tokens (
    secret     TEXT PRIMARY KEY,
    scope      TEXT NOT NULL,
    name       TEXT,
    labels     TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER
) STRICT, WITHOUT ROWID;

-- A node that was taken out stays, for the attempts that it ran.
CREATE TABLE nodes (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    labels     TEXT NOT NULL,
    inventory  TEXT NOT NULL,
    joined_at  INTEGER NOT NULL,
    removed_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX nodes_by_name ON nodes (name) WHERE removed_at IS NULL;

CREATE TABLE certificates (
    id         TEXT PRIMARY KEY,
    scope      TEXT NOT NULL,
    node       TEXT REFERENCES nodes (id),
    name       TEXT NOT NULL,
    issued_at  INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE datasets (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    corpus_bytes  INTEGER NOT NULL,
    manifest      TEXT NOT NULL,
    registered_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL,
    dataset         TEXT NOT NULL REFERENCES datasets (id),
    submitter       TEXT NOT NULL,
    spec            TEXT NOT NULL,
    submitted_at    INTEGER NOT NULL,
    phase           TEXT NOT NULL,
    why             TEXT,
    epoch           INTEGER NOT NULL DEFAULT 0,
    started_at      INTEGER,
    ended_at        INTEGER,
    checkpoint      TEXT REFERENCES checkpoints (id),
    checkpoint_step INTEGER NOT NULL DEFAULT 0,
    not_before      INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_phase ON jobs (phase);

-- Which request made which job; one request, one job.
CREATE TABLE requests (
    id   TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    job  TEXT NOT NULL UNIQUE REFERENCES jobs (id)
) STRICT, WITHOUT ROWID;

-- One row for each lease ever granted; the open ones have no end.
CREATE TABLE attempts (
    job         TEXT NOT NULL REFERENCES jobs (id),
    epoch       INTEGER NOT NULL,
    node        TEXT NOT NULL REFERENCES nodes (id),
    device      TEXT NOT NULL,
    granted_at  INTEGER NOT NULL,
    resume_from TEXT REFERENCES checkpoints (id),
    ended_at    INTEGER,
    how         TEXT,
    PRIMARY KEY (job, epoch)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX one_attempt_for_a_job ON attempts (job) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX one_attempt_on_a_device ON attempts (node, device) WHERE ended_at IS NULL;

CREATE TABLE failures (
    job     TEXT NOT NULL,
    epoch   INTEGER NOT NULL,
    cause   TEXT NOT NULL,
    message TEXT NOT NULL,
    at      INTEGER NOT NULL,
    PRIMARY KEY (job, epoch),
    FOREIGN KEY (job, epoch) REFERENCES attempts (job, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE checkpoints (
    id           TEXT PRIMARY KEY,
    job          TEXT NOT NULL,
    epoch        INTEGER NOT NULL,
    step         INTEGER NOT NULL,
    parent       TEXT REFERENCES checkpoints (id),
    size_bytes   INTEGER NOT NULL,
    manifest     TEXT NOT NULL,
    committed_at INTEGER NOT NULL,
    UNIQUE (job, step),
    FOREIGN KEY (job, epoch) REFERENCES attempts (job, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE rollouts (
    id         TEXT PRIMARY KEY,
    checkpoint TEXT NOT NULL REFERENCES checkpoints (id),
    selector   TEXT NOT NULL,
    asked_by   TEXT NOT NULL,
    asked_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
