-- What an operator may do to a projection beside making it anew, and what is waited for in numbers.

ALTER TABLE projection
    -- It rests: its segments stay with who holds them, and nothing is applied. A release that does not know of this goes on.
    ADD COLUMN paused     boolean NOT NULL DEFAULT false,
    -- Two builds are to be compared, which takes one position for all their segments: they go no further than this one, until the time is
    -- up by the database's clock, so that nothing stands still because who asked for it is gone.
    ADD COLUMN stop_at    bigint,
    ADD COLUMN stop_until timestamptz,
    ADD CONSTRAINT projection_stop CHECK ((stop_at IS NULL) = (stop_until IS NULL));

-- The to-do that was asked for first.
CREATE INDEX todo_oldest ON todo (automation, position) WHERE status = 'open';

-- What an automation has to do: all that is open, what of it waits for a worker at this moment, what was given up, and for how many seconds
-- the oldest open one has been waiting. Counted up to a bound, so that asking stays cheap however much there is.
CREATE FUNCTION todo_waiting(of text, bound integer, OUT open bigint, OUT due bigint, OUT failed bigint, OUT oldest float8)
LANGUAGE sql STABLE
RETURN ROW(
    (SELECT count(*) FROM (SELECT FROM todo WHERE automation = of AND status = 'open' LIMIT bound) AS open),
    (SELECT count(*) FROM (SELECT FROM todo WHERE automation = of AND status = 'open' AND next_attempt_at <= statement_timestamp()
                              AND (lease_until IS NULL OR lease_until < statement_timestamp()) LIMIT bound) AS due),
    (SELECT count(*) FROM (SELECT FROM todo WHERE automation = of AND status = 'failed' LIMIT bound) AS failed),
    (SELECT extract(epoch FROM statement_timestamp() - created_at)::float8 FROM todo WHERE automation = of AND status = 'open'
     ORDER BY position LIMIT 1)
);
REVOKE ALL ON FUNCTION todo_waiting FROM PUBLIC;
GRANT EXECUTE ON FUNCTION todo_waiting TO cartlog_projections, cartlog_publisher;
