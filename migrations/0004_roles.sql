-- One role per service, and one for cartctl. No role writes the log except through append_events and append_events_from_source.

DO $$
DECLARE
    service text;
BEGIN
    FOREACH service IN ARRAY ARRAY['cartlog_commands', 'cartlog_translator', 'cartlog_projections', 'cartlog_publisher', 'cartlog_operator'] LOOP
        -- Roles belong to the cluster: the migration of another database may have created them, or be creating them now.
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = service) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I LOGIN', service);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;

        -- The settings hold in this database only.
        -- A frozen process or a lost host holds the append lock or a checkpoint's row for a few seconds at most.
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET idle_in_transaction_session_timeout = %L', service, current_database(),
                       CASE service WHEN 'cartlog_operator' THEN '5s' ELSE '3s' END);
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET tcp_keepalives_idle = 2', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET tcp_keepalives_interval = 1', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET tcp_keepalives_count = 3', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET tcp_user_timeout = 3000', service, current_database());
        -- A batch of a projection may take longer than an append: no command waits for it. An operator may compare large tables.
        IF service <> 'cartlog_operator' THEN
            EXECUTE format('ALTER ROLE %I IN DATABASE %I SET transaction_timeout = %L', service, current_database(),
                           CASE service WHEN 'cartlog_projections' THEN '30s' ELSE '5s' END);
        END IF;
        -- A session keeps a plan that was made while the log was short. Every statement on the log has an index, so no other scan is allowed.
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET enable_seqscan = off', service, current_database());
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET enable_bitmapscan = off', service, current_database());
        -- One plan for every call: planning a read for each call's arrays costs five times the read.
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET plan_cache_mode = force_generic_plan', service, current_database());
    END LOOP;
END $$;

-- append_events and append_events_from_source run as their owner: no role may place an object where they could find it.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY, CREATE ON DATABASE %I FROM PUBLIC', current_database()); END $$;

-- Every service: reads the log, appends to it, and sees which migrations were applied.
GRANT USAGE ON SCHEMA public TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;
GRANT SELECT ON event, event_log, _sqlx_migrations TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;
GRANT EXECUTE ON FUNCTION log_identity, event_store_current_epoch, lock_log, read_events, append_events
    TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;

-- inventory-translator: the stored offsets.
GRANT SELECT ON source_offset TO cartlog_translator;
GRANT EXECUTE ON FUNCTION append_events_from_source TO cartlog_translator;

-- cart-projections and publisher: what the projection runtime stores.
GRANT SELECT, INSERT, UPDATE ON projection TO cartlog_projections, cartlog_publisher;
GRANT SELECT, INSERT, UPDATE, DELETE ON checkpoint, replica, parked_key, parked_event, todo TO cartlog_projections, cartlog_publisher;
GRANT SELECT ON skipped_event TO cartlog_projections, cartlog_publisher;
GRANT EXECUTE ON FUNCTION key_hash, key_in_scope, build_lock_key, begin_projection_read, todo_backlog
    TO cartlog_projections, cartlog_publisher;

-- cart-projections: the read models, also those of later migrations, and the state of its automation.
GRANT USAGE ON SCHEMA projection_a, projection_b, automation TO cartlog_projections;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA projection_a, projection_b TO cartlog_projections;
ALTER DEFAULT PRIVILEGES IN SCHEMA projection_a, projection_b GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLES TO cartlog_projections;
GRANT SELECT, INSERT, UPDATE, DELETE ON automation.archive_item_open_item TO cartlog_projections;

-- cartctl: reads every table, also those of later migrations, and writes what its commands write.
GRANT USAGE ON SCHEMA public, projection_a, projection_b, automation TO cartlog_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA public, projection_a, projection_b, automation TO cartlog_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA public, projection_a, projection_b, automation GRANT SELECT ON TABLES TO cartlog_operator;
-- `cartctl projections rebuild` and `drop` empty a build.
GRANT TRUNCATE ON ALL TABLES IN SCHEMA projection_a, projection_b TO cartlog_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA projection_a, projection_b GRANT TRUNCATE ON TABLES TO cartlog_operator;
GRANT UPDATE ON todo, source_offset TO cartlog_operator;
GRANT INSERT, UPDATE, DELETE ON projection, checkpoint, parked_key, parked_event, skipped_event TO cartlog_operator;
-- Functions that run with the rights of their caller, and log_identity, which only reads.
GRANT EXECUTE ON FUNCTION log_identity, event_store_current_epoch, lock_log, read_events, key_hash, key_in_scope, build_lock_key,
    begin_projection_read, todo_backlog TO cartlog_operator;
