-- The roles, what each may do, and a check that all of it is still so.
--
-- cartlog_log owns everything and cannot log in. One role per service, and one for cartctl, write the log through append_events and
-- append_events_from_source only.

CREATE FUNCTION login_roles() RETURNS text[]
LANGUAGE sql IMMUTABLE
RETURN ARRAY['cartlog_commands', 'cartlog_translator', 'cartlog_projections', 'cartlog_publisher', 'cartlog_operator'];

-- The types of events that a role may append. NULL: every type, for the owner of the log and superusers. A role that an administrator made a
-- member of a service's role may append what that one may.
CREATE FUNCTION event_types(role name) RETURNS text[]
LANGUAGE sql STABLE
RETURN CASE
    WHEN pg_has_role(role, 'cartlog_log', 'MEMBER') THEN NULL
    WHEN pg_has_role(role, 'cartlog_commands', 'MEMBER') THEN ARRAY['CartCreated', 'ItemAdded', 'ItemRemoved', 'CartCleared', 'CartSubmitted']
    WHEN pg_has_role(role, 'cartlog_translator', 'MEMBER') THEN ARRAY['InventoryChanged', 'PriceChanged']
    WHEN pg_has_role(role, 'cartlog_projections', 'MEMBER') THEN ARRAY['ItemArchived']
    WHEN pg_has_role(role, 'cartlog_publisher', 'MEMBER') THEN ARRAY['CartPublished', 'CartPublicationFailed']
    ELSE '{}'::text[]
END;

-- The ids that an event of a type has: cart_id, item_id, product_id. NULL: not known.
CREATE FUNCTION event_ids(event_type text) RETURNS boolean[]
LANGUAGE sql IMMUTABLE
RETURN CASE event_type
    WHEN 'CartCreated' THEN '{t,f,f}'::boolean[]
    WHEN 'ItemAdded' THEN '{t,t,t}'::boolean[]
    WHEN 'ItemRemoved' THEN '{t,t,f}'::boolean[]
    WHEN 'ItemArchived' THEN '{t,t,f}'::boolean[]
    WHEN 'CartCleared' THEN '{t,f,f}'::boolean[]
    WHEN 'CartSubmitted' THEN '{t,f,f}'::boolean[]
    WHEN 'CartPublished' THEN '{t,f,f}'::boolean[]
    WHEN 'CartPublicationFailed' THEN '{t,f,f}'::boolean[]
    WHEN 'InventoryChanged' THEN '{f,f,t}'::boolean[]
    WHEN 'PriceChanged' THEN '{f,f,t}'::boolean[]
END;

-- Answers whether a role runs a projection, and so may write the rows of that projection. Members count here, too.
CREATE FUNCTION runs_projection(role name, projection text) RETURNS boolean
LANGUAGE sql STABLE
RETURN pg_has_role(role, CASE projection WHEN 'publish_cart' THEN 'cartlog_publisher' ELSE 'cartlog_projections' END::name, 'MEMBER')
    OR pg_has_role(role, 'cartlog_operator', 'MEMBER')
    OR pg_has_role(role, 'cartlog_log', 'MEMBER');

-- The connections that one role may have: 60 % of the server's. A role that opens as many as it can leaves the others enough to work.
CREATE FUNCTION connection_limit() RETURNS integer
LANGUAGE sql STABLE
RETURN (current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
        - current_setting('reserved_connections')::integer) * 6 / 10;

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
                EXECUTE format('CREATE ROLE %I %s', role, CASE role WHEN 'cartlog_log' THEN 'NOLOGIN'
                    ELSE 'LOGIN CONNECTION LIMIT ' || public.connection_limit() END);
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
                -- Defaults that the database may have been given would break appends and names.
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
-- UPDATE of columns, and no DELETE: a role with either of them on a whole table may lock it, and both services would wait.
GRANT SELECT ON projection, checkpoint, replica, parked_key, parked_event, todo, skipped_event TO cartlog_projections, cartlog_publisher;
GRANT INSERT ON projection, checkpoint, replica, parked_key, parked_event, todo TO cartlog_projections, cartlog_publisher;
GRANT UPDATE (version, status, tables, switch_when_ready, switch_with_parked, paused, hold_at, hold_until, ahead_of, started_at)
    ON projection TO cartlog_projections, cartlog_publisher;
GRANT UPDATE (position, owner, updated_at, blocked_at, blocked_error, blocked_attempts, blocked_since)
    ON checkpoint TO cartlog_projections, cartlog_publisher;
GRANT UPDATE (beats, lease, beaten_at, throughput) ON replica TO cartlog_projections, cartlog_publisher;
GRANT UPDATE (position, error, attempts, tried_at, retry_asked_at) ON parked_key TO cartlog_projections, cartlog_publisher;
GRANT UPDATE (status, attempts, tried_for, next_attempt_at, lease, lease_for, last_error, finished_at)
    ON todo TO cartlog_projections, cartlog_publisher;
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

-- Services delete rows of their own projections through functions. These run as the owner, whom no policy restricts.

-- Deletes replicas that still have these numbers of heartbeats; NULL: any number.
CREATE FUNCTION delete_replicas(of_names text[], ids uuid[], at_beats bigint[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    DELETE FROM replica r USING unnest(of_names, ids, at_beats) AS d (name, id, beats)
    WHERE r.name = d.name AND r.id = d.id AND r.beats = coalesce(d.beats, r.beats) AND runs_projection(session_user, r.name);
END;

-- Deletes the checkpoints of a build, and then its parked keys: until then, the owner of a checkpoint may have parked one.
CREATE FUNCTION delete_progress(of_name text, of_build text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    DELETE FROM checkpoint WHERE name = of_name AND build = of_build AND runs_projection(session_user, of_name);
    DELETE FROM parked_key WHERE name = of_name AND build = of_build AND runs_projection(session_user, of_name);
END;

-- Deletes the events of a parked key's queue up to a position, and the key if none is left.
CREATE FUNCTION delete_parked(of_name text, of_build text, of_key uuid, up_to bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    DELETE FROM parked_event WHERE name = of_name AND build = of_build AND key = of_key AND position <= up_to
                               AND runs_projection(session_user, of_name);
    DELETE FROM parked_key k WHERE name = of_name AND build = of_build AND key = of_key AND runs_projection(session_user, of_name)
        AND NOT EXISTS (SELECT FROM parked_event q WHERE q.name = k.name AND q.build = k.build AND q.key = k.key);
END;

-- Deletes up to `most` done to-dos that are older than the retention time. Answers their number.
CREATE FUNCTION delete_done_todos(of_automation text, retention interval, most bigint) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH deleted AS (
        DELETE FROM todo WHERE automation = of_automation AND key = ANY (ARRAY(
            -- No clock_timestamp(): an index does not search by a volatile function, so every done to-do would be read.
            SELECT key FROM todo WHERE automation = of_automation AND status = 'done' AND finished_at < statement_timestamp() - retention
                                   AND runs_projection(session_user, of_automation)
            ORDER BY finished_at LIMIT most FOR UPDATE SKIP LOCKED))
        RETURNING 1
    )
    SELECT count(*) FROM deleted;
END;
GRANT EXECUTE ON FUNCTION delete_replicas, delete_progress, delete_parked, delete_done_todos TO cartlog_projections, cartlog_publisher;
GRANT EXECUTE ON FUNCTION delete_progress TO cartlog_operator;

-- The rights of the roles and of PUBLIC, and the settings of the roles, one row each: the statement that makes it so, and the one that ends it.
-- {database} stands for the name of this database, which a restore may change. What everybody may do anyway is left out. Reads catalogs only,
-- without locking a table, because it says who does that.
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
SELECT 2, format('ALTER TABLE %s.%I ENABLE ROW LEVEL SECURITY', s.name, c.relname), format('ALTER TABLE %s.%I DISABLE ROW LEVEL SECURITY', s.name, c.relname)
FROM pg_class c JOIN own_schema s ON s.oid = c.relnamespace WHERE c.relrowsecurity
UNION ALL
-- Functions of a superuser or of a role that logs in would lend their rights to their callers.
SELECT 4, format('%s belongs to %I', o.name, pg_get_userbyid(o.owner)), format('ALTER %s OWNER TO cartlog_log', o.name)
FROM object o WHERE pg_get_userbyid(o.owner) <> 'cartlog_log'
UNION ALL
-- Settings of the database, or of a role in every database, that change what statements mean. Every role may set its own.
SELECT 5, format('%s SET %s = %L', of.name, split_part(c.setting, '=', 1), substr(c.setting, strpos(c.setting, '=') + 1)),
       format('%s RESET %s', of.name, split_part(c.setting, '=', 1))
FROM pg_db_role_setting s JOIN role r ON r.oid = s.setrole
JOIN LATERAL (SELECT CASE r.oid WHEN 0 THEN 'ALTER DATABASE {database}' ELSE 'ALTER ROLE ' || r.name END AS name) AS of ON true
CROSS JOIN LATERAL unnest(s.setconfig) AS c (setting)
WHERE s.setdatabase = CASE r.oid WHEN 0 THEN (SELECT oid FROM pg_database WHERE datname = current_database()) ELSE 0 END
  AND c.setting ~ '^(search_path|role|row_security|default_transaction_(isolation|deferrable)|(array|transform)_null(s|_equals)|standard_conforming_strings|projection\..*)='
UNION ALL
-- No role that logs in has the rights of another role, or rights beyond grants.
SELECT 6, format('GRANT %I TO %s', pg_get_userbyid(m.roleid), r.name),
       format('REVOKE %I FROM %s GRANTED BY %I', pg_get_userbyid(m.roleid), r.name, pg_get_userbyid(m.grantor))
FROM pg_auth_members m JOIN role r ON r.oid = m.member
UNION ALL
SELECT 6, format('ALTER ROLE %I %s', r.rolname, a.name), format('ALTER ROLE %I NO%s', r.rolname, a.name)
FROM pg_roles r
CROSS JOIN LATERAL (VALUES ('SUPERUSER', r.rolsuper), ('CREATEROLE', r.rolcreaterole), ('CREATEDB', r.rolcreatedb), ('REPLICATION', r.rolreplication),
                           ('BYPASSRLS', r.rolbypassrls), ('LOGIN', r.rolcanlogin AND r.rolname = 'cartlog_log')) AS a (name, has)
WHERE a.has AND r.rolname = ANY (login_roles() || 'cartlog_log'::text)
UNION ALL
-- Any other limit is the administrator's.
SELECT 6, format('ALTER ROLE %I CONNECTION LIMIT -1', rolname), format('ALTER ROLE %I CONNECTION LIMIT %s', rolname, connection_limit())
FROM pg_roles WHERE rolconnlimit = -1 AND rolname = ANY (login_roles());

-- The same as it was when the newest migration was applied.
CREATE TABLE installation (
    present text PRIMARY KEY,
    step    integer NOT NULL
);

-- Every migration ends with a call of this function. The settings of these three decide how PostgreSQL writes names.
CREATE FUNCTION record_installation() RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
BEGIN ATOMIC
    DELETE FROM installation;
    INSERT INTO installation (present, step)
    SELECT DISTINCT present, step FROM installation_now
    WHERE step < 4 AND present NOT LIKE '% ON FUNCTION pg_catalog.%' AND present NOT LIKE 'GRANT % ON FUNCTION % TO PUBLIC'
    UNION
    -- Only a superuser may set it, and so no role may raise its own. Without it, one query could fill the disk.
    SELECT format('ALTER ROLE %I IN DATABASE {database} SET temp_file_limit = %L', role, '256MB'), 3
    FROM unnest(login_roles()) AS role WHERE role <> 'cartlog_operator';
END;

-- Makes roles, grants, settings and owners what the newest migration left. Answers the statements that it ran.
CREATE FUNCTION repair_installation() RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
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
        BEGIN
            EXECUTE statement;
            RETURN NEXT statement;
        -- Something that only a superuser may change stays a finding.
        EXCEPTION WHEN insufficient_privilege THEN NULL;
        END;
    END LOOP;
    -- sqlx takes an advisory lock while it migrates.
    IF NOT has_function_privilege('cartlog_log', 'pg_advisory_lock(bigint)', 'EXECUTE') THEN
        GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint), pg_advisory_unlock(bigint) TO cartlog_log;
    END IF;
END $$;

-- Answers what is not as the newest migration left it, and who keeps others waiting for a lock. A row for a lock has the role that holds it,
-- which lock it is (append or other), and for how many seconds others have waited. No row: all is well.
CREATE FUNCTION check_installation() RETURNS TABLE (finding text, remedy text, holder text, lock text, waited float8)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
BEGIN ATOMIC
    WITH now AS MATERIALIZED (
        SELECT * FROM installation_now
    ), wrong AS (
        SELECT n.step, n.present AS is_so, CASE n.step WHEN 4 THEN 'and must belong to cartlog_log' ELSE 'is not allowed' END AS why
        FROM now n WHERE NOT EXISTS (SELECT FROM installation i WHERE i.present = n.present)
        UNION ALL
        SELECT i.step, i.present, 'is missing' FROM installation i WHERE NOT EXISTS (SELECT FROM now n WHERE n.present = i.present)
    )
    SELECT format('%s %s%s', replace(string_agg(is_so, '; ' ORDER BY is_so) FILTER (WHERE nth <= 3), '{database}', current_database()), why,
                  CASE WHEN max(nth) > 3 THEN format(', and %s more', max(nth) - 3) END),
           'run cartlog-migrate (or SELECT repair_installation() as a superuser)', NULL, NULL, NULL::float8
    FROM (SELECT w.*, row_number() OVER (PARTITION BY step, why ORDER BY is_so) AS nth FROM wrong w) AS w GROUP BY step, why
    UNION ALL
    -- Nothing mends these by itself, because an operator may want them for a while.
    SELECT format('%s SET %s, so %s', o.of, c.setting,
                  CASE WHEN c.setting ~ '^sync' THEN 'a crash may lose acknowledged commands' ELSE 'no command is taken' END),
           format('%s RESET %s', o.of, split_part(c.setting, '=', 1)), NULL, NULL, NULL
    FROM pg_db_role_setting s
    CROSS JOIN LATERAL (SELECT CASE s.setrole WHEN 0 THEN format('ALTER DATABASE %I', current_database())
                                              ELSE format('ALTER ROLE %I', pg_get_userbyid(s.setrole)) END) AS o (of)
    CROSS JOIN LATERAL unnest(s.setconfig) AS c (setting)
    WHERE (s.setrole = 0 AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
           OR s.setdatabase = 0 AND pg_get_userbyid(s.setrole) = ANY (login_roles()))
      AND lower(c.setting) ~ '^(synchronous_commit=(off|false|no|0|local)|default_transaction_read_only=(on|true|yes|1))$'
    UNION ALL
    SELECT format('the database is encoded in %s', current_setting('server_encoding')), 'restore it into a database with the encoding UTF8',
           NULL, NULL, NULL
    WHERE current_setting('server_encoding') <> 'UTF8'
    UNION ALL
    -- Sessions that others wait for, and that wait for nobody themselves. The append lock is held for milliseconds, and no other lock of ours
    -- for seconds. An append gives up after 5 seconds, so nobody waits longer than that.
    SELECT format('%s holds %s (%s), and %s waited for it for %s s', coalesce(h.usename, 'an unknown role'),
                  CASE l.lock WHEN 'append' THEN 'the append lock' ELSE 'a lock' END,
                  CASE l.holder WHEN 0 THEN 'prepared transaction' ELSE format('process %s', l.holder) END, l.waiters, round(l.seconds)),
           -- A commit that waits for the standby would be acknowledged by the primary alone.
           CASE WHEN current_setting('synchronous_standby_names') <> '' THEN 'unless pg_stat_activity shows that it waits for SyncRep, ' ELSE '' END
           || CASE l.holder WHEN 0 THEN 'end it: ROLLBACK PREPARED what pg_prepared_xacts shows'
                            ELSE format('end it: SELECT pg_terminate_backend(%s)', l.holder) END,
           coalesce(h.usename, 'other'), l.lock, l.seconds
    FROM (
        SELECT b.holder, string_agg(DISTINCT a.usename, ', ') AS waiters,
               CASE WHEN bool_or(w.relation IS NOT DISTINCT FROM 'public.event_log'::regclass) THEN 'append' ELSE 'other' END AS lock,
               max(extract(epoch FROM clock_timestamp() - w.waitstart))::float8 AS seconds
        FROM pg_locks w JOIN pg_stat_activity a ON a.pid = w.pid AND a.datname = current_database()
        CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b (holder)
        WHERE w.waitstart < clock_timestamp() - CASE w.relation WHEN 'public.event_log'::regclass THEN interval '1 second' ELSE interval '3 seconds' END
          AND NOT EXISTS (SELECT FROM pg_locks o WHERE o.pid = b.holder AND NOT o.granted)
        GROUP BY b.holder
    ) AS l LEFT JOIN pg_stat_activity h ON h.pid = l.holder;
END;
GRANT EXECUTE ON FUNCTION check_installation TO cartlog_commands, cartlog_translator, cartlog_projections, cartlog_publisher, cartlog_operator;

SELECT record_installation();
SELECT repair_installation();
