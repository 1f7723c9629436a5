-- How fast each process applies events, told with its heartbeat: so that any of them can answer for all.

-- By build: {"projection_a": {"events": 1200.5, "batches": 3.2}}, each a second, lately; a build of which nothing was applied is left out.
-- A release that does not know of it tells nothing.
ALTER TABLE replica ADD COLUMN pace jsonb NOT NULL DEFAULT '{}';
