-- Version 2: what attempts are told about handing their device over, what nodes are open to, and measured speeds.

-- JSON, as it stands in the events; null: the attempt goes on.
ALTER TABLE jobs ADD COLUMN hand_over TEXT;

ALTER TABLE nodes ADD COLUMN mode TEXT NOT NULL DEFAULT 'open';

-- How fast a device made steps of one kind; the kind is a digest.
CREATE TABLE speeds (
    node          TEXT NOT NULL REFERENCES nodes (id),
    device        TEXT NOT NULL,
    workload      TEXT NOT NULL,
    steps_per_sec REAL NOT NULL,
    spread        REAL NOT NULL,
    measurements  INTEGER NOT NULL,
    at            INTEGER NOT NULL,
    PRIMARY KEY (node, device, workload)
) STRICT, WITHOUT ROWID;
