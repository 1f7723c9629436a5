-- A role a service. None may write the log but through event_append and event_append_from.
--
-- Roles belong to the cluster and not to the database, so another database's migration may have made them already, or be making them
-- at this moment.
DO $$
DECLARE
    service text;
BEGIN
    FOREACH service IN ARRAY ARRAY['cartlog_commands', 'cartlog_translator', 'cartlog_projections', 'cartlog_publisher'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = service) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I LOGIN', service);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;
END $$;

-- Nobody holds the append lock, or a checkpoint's row, for long: a process frozen in the middle of a transaction, or a host that is
-- gone, delays the others by seconds. Set for this database, so that a role's settings elsewhere stay as they are.
DO $$
DECLARE
    service text;
BEGIN
    FOREACH service IN ARRAY ARRAY['cartlog_commands', 'cartlog_translator', 'cartlog_projections', 'cartlog_publisher'] LOOP
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET idle_in_transaction_session_timeout = ''3s''', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET tcp_keepalives_idle = 2', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET tcp_keepalives_interval = 1', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET tcp_keepalives_count = 3', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET tcp_user_timeout = 3000', service, current_database());
        -- A plan made when the log was short is kept by a session for as long as nobody analyses the table, and walks it whole by then.
        -- Every statement on the log has an index that serves it, so no other way is even considered.
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET enable_seqscan = off', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET enable_bitmapscan = off', service, current_database());
        -- One plan for every call: made for each call's arrays anew, the plan of a read costs five times the read.
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET plan_cache_mode = force_generic_plan', service, current_database());
        -- A projection's batch may take longer than a command's append, and holds no lock that commands wait for.
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET transaction_timeout = %L', service, current_database(),
                       CASE service WHEN 'cartlog_projections' THEN '30s' ELSE '5s' END);
    END LOOP;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- The functions that write the log run as its owner: nobody may put an object of their own where such a function looks for one.
DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY, CREATE ON DATABASE %I FROM PUBLIC', current_database()); END $$;

GRANT USAGE ON SCHEMA public TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;
GRANT SELECT ON event, event_log, translation_offset, _sqlx_migrations
    TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;
GRANT EXECUTE ON FUNCTION event_log_id, event_store_current_epoch, event_lock, event_matching, event_append
    TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;
GRANT EXECUTE ON FUNCTION event_append_from TO cartlog_translator;
