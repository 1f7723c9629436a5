-- Sets the passwords of the services' roles and of cartctl from the environment. psql runs it as the owner, after the migrations and whenever a
-- password changes.
\set ON_ERROR_STOP on
\getenv commands CARTLOG_COMMANDS_PASSWORD
\getenv translator CARTLOG_TRANSLATOR_PASSWORD
\getenv projections CARTLOG_PROJECTIONS_PASSWORD
\getenv publisher CARTLOG_PUBLISHER_PASSWORD
\getenv operator CARTLOG_OPERATOR_PASSWORD
-- A server that logs statements must not log these.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
ALTER ROLE cartlog_commands PASSWORD :'commands';
ALTER ROLE cartlog_translator PASSWORD :'translator';
ALTER ROLE cartlog_projections PASSWORD :'projections';
ALTER ROLE cartlog_publisher PASSWORD :'publisher';
ALTER ROLE cartlog_operator PASSWORD :'operator';
