-- The roles, what each may do, and a check that all of it is still so.
--
-- cartlog_log owns everything and cannot log in. One role per service, and one for cartctl, write the log through append_events and
-- append_events_from_source only.

CREATE FUNCTION login_roles() RETURNS text[]
LANGUAGE sql IMMUTABLE
RETURN ARRAY['cartlog_commands', 'cartlog_translator', 'cartlog_projections', 'cartlog_publisher', 'cartlog_operator'];

-- The types of events that a role may append. NULL: every type.
CREATE FUNCTION event_types(role name) RETURNS text[]
LANGUAGE sql IMMUTABLE
RETURN CASE role
    WHEN 'cartlog_commands' THEN ARRAY['CartCreated', 'ItemAdded', 'ItemRemoved', 'CartCleared', 'CartSubmitted']
    WHEN 'cartlog_translator' THEN ARRAY['InventoryChanged', 'PriceChanged']
    WHEN 'cartlog_projections' THEN ARRAY['ItemArchived']
    WHEN 'cartlog_publisher' THEN ARRAY['CartPublished', 'CartPublicationFailed']
END;

-- Answers whether a role runs a projection, and so may write the rows of that projection.
CREATE FUNCTION runs_projection(role name, projection text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN CASE role
    WHEN 'cartlog_publisher' THEN projection = 'publish_cart'
    WHEN 'cartlog_projections' THEN projection <> 'publish_cart'
    ELSE role = 'cartlog_operator'
END;

-- Creates the roles that are missing. Roles belong to the cluster: the migration of another database may have created them, or be creating
-- them now.
CREATE FUNCTION create_roles() RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY public.login_roles() || 'cartlog_log'::text LOOP
        IF to_regrole(role) IS NULL THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I %s', role, CASE role WHEN 'cartlog_log' THEN 'NOLOGIN' ELSE 'LOGIN' END);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;
    -- A migrating role that is no superuser gives its objects to cartlog_log, and changes them later.
    IF NOT pg_has_role('cartlog_log', 'SET') THEN
        EXECUTE format('GRANT cartlog_log TO %I WITH INHERIT TRUE, SET TRUE', current_user);
    END IF;
    IF NOT has_schema_privilege('cartlog_log', 'public', 'CREATE') THEN
        GRANT CREATE ON SCHEMA public TO cartlog_log;
    END IF;
    IF NOT has_database_privilege('cartlog_log', current_database(), 'CREATE') THEN
        EXECUTE format('GRANT CREATE ON DATABASE %I TO cartlog_log', current_database());
    END IF;
END $$;
SELECT create_roles();

-- The settings hold in this database only. The services also set them in each session, because a restore loses them.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY login_roles() LOOP
        EXECUTE (
            SELECT string_agg(format('ALTER ROLE %I IN DATABASE %I SET %s = %L;', role, current_database(), name, value), ' ')
            FROM (VALUES
                -- A frozen process or a lost host holds the append lock or a checkpoint's row for a few seconds at most.
                ('idle_in_transaction_session_timeout', CASE role WHEN 'cartlog_operator' THEN '5s' ELSE '3s' END),
                ('tcp_keepalives_idle', '2'),
                ('tcp_keepalives_interval', '1'),
                ('tcp_keepalives_count', '3'),
                ('tcp_user_timeout', '3000'),
                -- A batch of a projection may take longer than an append: no command waits for it. An operator may compare large tables.
                ('transaction_timeout', CASE role WHEN 'cartlog_operator' THEN '0' WHEN 'cartlog_projections' THEN '30s' ELSE '5s' END),
                -- What the database itself may have been given as defaults would break appends and names.
                ('default_transaction_isolation', 'read committed'),
                ('search_path', 'public'),
                -- A session keeps a plan that was made while the log was short. Every statement on the log has an index, so no other scan
                -- is allowed.
                ('enable_seqscan', 'off'),
                ('enable_bitmapscan', 'off'),
                -- One plan for every call: planning a read for each call's arrays costs five times the read.
                ('plan_cache_mode', 'force_generic_plan')
            ) AS setting (name, value)
        );
    END LOOP;
END $$;

-- append_events and append_events_from_source run as their owner: no role may place an object where they could find it.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
DO $$
BEGIN
    EXECUTE format('REVOKE TEMPORARY, CREATE ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher, cartlog_operator',
                   current_database());
END $$;

-- Every service: reads the log, appends to it, and sees which migrations were applied.
GRANT USAGE ON SCHEMA public TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;
GRANT SELECT ON event, event_log, _sqlx_migrations TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;
GRANT EXECUTE ON FUNCTION log_identity, event_store_current_epoch, lock_log, read_events, append_events
    TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher;

-- Everybody who reads the log: the lookups.
GRANT EXECUTE ON FUNCTION read_by_cart_id, newest_by_cart_id, read_by_item_id, newest_by_item_id, read_by_product_id, newest_by_product_id,
    read_by_type, newest_by_type TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher, cartlog_operator;

-- inventory-translator: the stored offsets.
GRANT SELECT ON source_offset TO cartlog_translator;
GRANT EXECUTE ON FUNCTION append_events_from_source TO cartlog_translator;

-- cart-projections and publisher: what the projection runtime stores.
GRANT SELECT, INSERT, UPDATE ON projection TO cartlog_projections, cartlog_publisher;
GRANT SELECT, INSERT, UPDATE, DELETE ON checkpoint, replica, parked_key, parked_event, todo TO cartlog_projections, cartlog_publisher;
GRANT SELECT ON skipped_event TO cartlog_projections, cartlog_publisher;
GRANT EXECUTE ON FUNCTION key_hash, key_in_scope, is_held, belong_to, build_tables, todo_backlog
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
GRANT TRUNCATE ON ALL TABLES IN SCHEMA projection_a, projection_b, automation TO cartlog_operator;
ALTER DEFAULT PRIVILEGES IN SCHEMA projection_a, projection_b, automation GRANT TRUNCATE ON TABLES TO cartlog_operator;
GRANT DELETE ON todo TO cartlog_operator;
GRANT UPDATE ON todo, source_offset TO cartlog_operator;
GRANT INSERT, UPDATE, DELETE ON projection, checkpoint, parked_key, parked_event, skipped_event TO cartlog_operator;
-- Functions that run with the rights of their caller, and log_identity, which only reads.
GRANT EXECUTE ON FUNCTION log_identity, event_store_current_epoch, lock_log, read_events, key_hash, key_in_scope, is_held, belong_to, build_tables,
    todo_backlog TO cartlog_operator;

-- Row-level security: a role writes and locks the rows of its own projections only, whatever it was granted. Everybody reads.
DO $$
DECLARE
    of record;
BEGIN
    FOR of IN SELECT * FROM (VALUES ('projection', 'name'), ('replica', 'name'), ('checkpoint', 'name'), ('parked_key', 'name'),
                                    ('parked_event', 'name'), ('skipped_event', 'name'), ('todo', 'automation')) AS t (name, projection) LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', of.name);
        EXECUTE format('CREATE POLICY reads ON %I FOR SELECT USING (true)', of.name);
        EXECUTE format('CREATE POLICY inserts_own ON %I FOR INSERT WITH CHECK (runs_projection(current_user, %I))', of.name, of.projection);
        EXECUTE format('CREATE POLICY updates_own ON %I FOR UPDATE USING (runs_projection(current_user, %I))', of.name, of.projection);
        EXECUTE format('CREATE POLICY deletes_own ON %I FOR DELETE USING (runs_projection(current_user, %I))', of.name, of.projection);
    END LOOP;
END $$;
GRANT EXECUTE ON FUNCTION runs_projection TO cartlog_projections, cartlog_publisher, cartlog_operator;

-- What the roles and PUBLIC may do and how the roles are set, one row each: the statement that makes it so, and the one that ends it.
-- {database} stands for the name of this database, which a restore may change. What everybody may do anyway is left out.
CREATE VIEW installation_now AS
WITH role AS (
    SELECT oid, quote_ident(rolname) AS name FROM pg_roles WHERE rolname = ANY (login_roles())
    UNION ALL SELECT 0, 'PUBLIC'
), own_schema AS (
    SELECT oid, quote_ident(nspname) AS name FROM pg_namespace WHERE nspname IN ('public', 'projection_a', 'projection_b', 'automation')
), object AS (
    SELECT 'TABLE ' || s.name || '.' || quote_ident(c.relname) AS name, c.relowner AS owner, coalesce(c.relacl, acldefault('r', c.relowner)) AS acl
    FROM pg_class c JOIN own_schema s ON s.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm')
    UNION ALL
    SELECT 'FUNCTION ' || s.name || '.' || format('%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), p.proowner,
           coalesce(p.proacl, acldefault('f', p.proowner))
    FROM pg_proc p JOIN own_schema s ON s.oid = p.pronamespace
    UNION ALL
    -- Large objects, and advisory locks: everybody may make and take them without end, and nothing here needs them.
    SELECT format('FUNCTION pg_catalog.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), NULL,
           coalesce(p.proacl, acldefault('f', p.proowner))
    FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
      AND (p.proname ~ '^lo_' OR p.proname IN ('lowrite', 'loread') OR p.proname ~ '^pg_(try_)?advisory')
    UNION ALL
    SELECT 'SCHEMA ' || s.name, CASE s.name WHEN 'public' THEN NULL ELSE n.nspowner END, coalesce(n.nspacl, acldefault('n', n.nspowner))
    FROM pg_namespace n JOIN own_schema s USING (oid)
    UNION ALL
    SELECT 'DATABASE {database}', NULL, coalesce(d.datacl, acldefault('d', d.datdba)) FROM pg_database d WHERE d.datname = current_database()
), granted AS (
    SELECT g.privilege_type || ' ON ' || o.name AS what, g.grantee FROM object o CROSS JOIN LATERAL aclexplode(o.acl) g
    UNION ALL
    SELECT format('%s (%I) ON TABLE %s.%I', g.privilege_type, a.attname, s.name, c.relname), g.grantee
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN own_schema s ON s.oid = c.relnamespace CROSS JOIN LATERAL aclexplode(a.attacl) g
)
SELECT 1 AS step, format('GRANT %s TO %s', g.what, r.name) AS present, format('REVOKE %s FROM %s', g.what, r.name) AS absent
FROM granted g JOIN role r ON r.oid = g.grantee
WHERE NOT (r.oid = 0 AND g.what IN ('CONNECT ON DATABASE {database}', 'USAGE ON SCHEMA public'))
UNION ALL
SELECT 2, format('ALTER DEFAULT PRIVILEGES IN SCHEMA %s GRANT %s ON TABLES TO %s', s.name, g.privilege_type, r.name),
       format('ALTER DEFAULT PRIVILEGES IN SCHEMA %s REVOKE %s ON TABLES FROM %s', s.name, g.privilege_type, r.name)
FROM pg_default_acl d JOIN own_schema s ON s.oid = d.defaclnamespace CROSS JOIN LATERAL aclexplode(d.defaclacl) g JOIN role r ON r.oid = g.grantee
WHERE d.defaclobjtype = 'r'
UNION ALL
SELECT 3, format('ALTER ROLE %s IN DATABASE {database} SET %s = %L', r.name, split_part(c.setting, '=', 1), substr(c.setting, strpos(c.setting, '=') + 1)),
       format('ALTER ROLE %s IN DATABASE {database} RESET %s', r.name, split_part(c.setting, '=', 1))
FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()
JOIN role r ON r.oid = s.setrole AND r.oid <> 0 CROSS JOIN LATERAL unnest(s.setconfig) AS c (setting)
UNION ALL
-- Functions of a superuser or of a role that logs in would lend their rights to their callers.
SELECT 4, format('%s belongs to %I', o.name, pg_get_userbyid(o.owner)), format('ALTER %s OWNER TO cartlog_log', o.name)
FROM object o WHERE pg_get_userbyid(o.owner) <> 'cartlog_log';

-- The same as it was when the newest migration was applied.
CREATE TABLE installation (
    present text PRIMARY KEY,
    step    integer NOT NULL
);

-- Every migration ends with a call of this function.
CREATE FUNCTION record_installation() RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    DELETE FROM installation;
    INSERT INTO installation (present, step)
    SELECT DISTINCT present, step FROM installation_now WHERE step < 4 AND present NOT LIKE '% ON FUNCTION pg_catalog.%';
END;

-- Makes roles, grants, settings and owners what the newest migration left. Answers the statements that it ran.
CREATE FUNCTION repair_installation() RETURNS SETOF text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    statement text;
BEGIN
    PERFORM public.create_roles();
    -- One repair at a time.
    LOCK TABLE public.installation IN EXCLUSIVE MODE;
    -- Read to its end before anything changes.
    FOREACH statement IN ARRAY ARRAY(
        SELECT replace(coalesce(n.absent, i.present), '{database}', quote_ident(current_database()))
        FROM public.installation i FULL JOIN public.installation_now n USING (present)
        WHERE i.present IS NULL OR n.present IS NULL
        ORDER BY n.present IS NULL, coalesce(n.step, i.step), 1
    ) LOOP
        EXECUTE statement;
        RETURN NEXT statement;
    END LOOP;
    -- sqlx takes an advisory lock while it migrates.
    IF NOT has_function_privilege('cartlog_log', 'pg_advisory_lock(bigint)', 'EXECUTE') THEN
        GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint), pg_advisory_unlock(bigint) TO cartlog_log;
    END IF;
END $$;

-- Answers what is not as the newest migration left it, and who stops all appends: that row has the role that holds the append lock, and for
-- how many seconds appends have waited. No row: all is well.
CREATE FUNCTION check_installation() RETURNS TABLE (finding text, remedy text, holder text, waited float8)
LANGUAGE sql STABLE SECURITY DEFINER
BEGIN ATOMIC
    WITH wrong AS (
        SELECT n.step, n.present AS is_so, CASE n.step WHEN 4 THEN 'and must belong to cartlog_log' ELSE 'is not allowed' END AS why
        FROM installation_now n WHERE NOT EXISTS (SELECT FROM installation i WHERE i.present = n.present)
        UNION ALL
        SELECT i.step, i.present, 'is missing' FROM installation i WHERE NOT EXISTS (SELECT FROM installation_now n WHERE n.present = i.present)
    )
    SELECT format('%s %s%s', replace(string_agg(is_so, '; ' ORDER BY is_so) FILTER (WHERE nth <= 3), '{database}', current_database()), why,
                  CASE WHEN max(nth) > 3 THEN format(', and %s more', max(nth) - 3) END),
           'run cartlog-migrate (or SELECT repair_installation() as a superuser)', NULL, NULL::float8
    FROM (SELECT w.*, row_number() OVER (PARTITION BY step, why ORDER BY is_so) AS nth FROM wrong w) AS w GROUP BY step, why
    UNION ALL
    SELECT format('the database is encoded in %s', current_setting('server_encoding')), 'restore it into a database with the encoding UTF8',
           NULL, NULL
    WHERE current_setting('server_encoding') <> 'UTF8'
    UNION ALL
    SELECT format('%s holds the append lock (process %s), and appends have waited for it for %s s', coalesce(a.usename, 'an unknown role'), h.pid,
                  round(w.seconds)),
           format('end it: SELECT pg_terminate_backend(%s)', h.pid), coalesce(a.usename, 'other'), w.seconds
    FROM pg_locks h
    JOIN (SELECT extract(epoch FROM clock_timestamp() - min(waitstart))::float8 AS seconds FROM pg_locks
          WHERE NOT granted AND relation = 'event_log'::regclass
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) w ON w.seconds > 3
    LEFT JOIN pg_stat_activity a ON a.pid = h.pid
    WHERE h.granted AND h.relation = 'event_log'::regclass AND h.mode = 'ShareUpdateExclusiveLock'
      AND h.database = (SELECT oid FROM pg_database WHERE datname = current_database());
END;
GRANT EXECUTE ON FUNCTION check_installation TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher, cartlog_operator;

SELECT record_installation();
SELECT repair_installation();
