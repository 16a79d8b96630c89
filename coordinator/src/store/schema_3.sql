-- Version 3: checkpoints that came after their attempt had lost its lease.

ALTER TABLE checkpoints ADD COLUMN late INTEGER NOT NULL DEFAULT 0;
