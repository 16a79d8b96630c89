-- Version 4: what is active and where, what checkpoints answered where they were made, and which of them are kept.

ALTER TABLE rollouts ADD COLUMN activate INTEGER NOT NULL DEFAULT 0;
-- For each node; null: no limit.
ALTER TABLE rollouts ADD COLUMN bytes_per_sec_max INTEGER;
ALTER TABLE rollouts ADD COLUMN withdrawn_at INTEGER;
-- JSON: selectors of nodes from which alone it was taken back.
ALTER TABLE rollouts ADD COLUMN not_on TEXT NOT NULL DEFAULT '[]';

-- JSON; null: not known.
ALTER TABLE checkpoints ADD COLUMN self_test TEXT;
ALTER TABLE checkpoints ADD COLUMN is_pinned INTEGER NOT NULL DEFAULT 0;
-- A checkpoint that is kept no longer stays as a row, for those that name it.
ALTER TABLE checkpoints ADD COLUMN retired_at INTEGER;
