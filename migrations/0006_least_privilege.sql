-- The operator's role, and what a role had beyond its need.

-- For cartctl: it sees everything, and writes what its commands write: to-dos tried again, a translator's offset, builds of read models. Not
-- the log.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'cartlog_operator') THEN
        BEGIN
            CREATE ROLE cartlog_operator LOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END IF;
    -- As with the services: frozen in the middle of something, it holds nobody up for long.
    EXECUTE format('ALTER ROLE cartlog_operator IN DATABASE %I SET idle_in_transaction_session_timeout = ''5s''', current_database());
    EXECUTE format('ALTER ROLE cartlog_operator IN DATABASE %I SET tcp_keepalives_idle = 2', current_database());
    EXECUTE format('ALTER ROLE cartlog_operator IN DATABASE %I SET tcp_keepalives_interval = 1', current_database());
    EXECUTE format('ALTER ROLE cartlog_operator IN DATABASE %I SET tcp_keepalives_count = 3', current_database());
    EXECUTE format('ALTER ROLE cartlog_operator IN DATABASE %I SET tcp_user_timeout = 3000', current_database());
END $$;

GRANT USAGE ON SCHEMA public, automation, projection_a, projection_b TO cartlog_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA public, automation, projection_a, projection_b TO cartlog_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA public, automation, projection_a, projection_b GRANT SELECT ON TABLES TO cartlog_operator;
GRANT UPDATE ON todo, translation_offset TO cartlog_operator;
GRANT INSERT, UPDATE, DELETE ON projection, checkpoint TO cartlog_operator;
-- A build that is made anew, or dropped, is emptied.
GRANT TRUNCATE ON ALL TABLES IN SCHEMA projection_a, projection_b TO cartlog_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA projection_a, projection_b GRANT TRUNCATE ON TABLES TO cartlog_operator;
DO $$
DECLARE
    thing text;
BEGIN
    FOREACH thing IN ARRAY ARRAY['parked', 'parked_event', 'skipped_event'] LOOP
        IF to_regclass(format('public.%I', thing)) IS NOT NULL THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON public.%I TO cartlog_operator', thing);
        END IF;
    END LOOP;
    FOR thing IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prorettype <> 'trigger'::regtype AND NOT prosecdef
    LOOP
        -- Each of these does what its caller may do.
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO cartlog_operator', thing);
    END LOOP;
END $$;
GRANT EXECUTE ON FUNCTION event_log_id TO cartlog_operator;

-- Offsets are the translator's concern alone.
REVOKE SELECT ON translation_offset FROM cartlog_commands, cartlog_projections, cartlog_publisher;

-- A function that is made from here on is nobody's until it is granted.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
