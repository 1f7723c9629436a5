-- cartctl's statements have the plans that the services' have (0002_roles.sql says why): by the indexes, one for whatever is asked, and the same
-- whenever the log was last analysed.
DO $$
BEGIN
    EXECUTE format('ALTER ROLE cartlog_operator IN DATABASE %I SET enable_seqscan = off', current_database());
    EXECUTE format('ALTER ROLE cartlog_operator IN DATABASE %I SET enable_bitmapscan = off', current_database());
    EXECUTE format('ALTER ROLE cartlog_operator IN DATABASE %I SET plan_cache_mode = force_generic_plan', current_database());
END $$;
