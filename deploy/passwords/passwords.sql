-- The passwords of the services and of cartctl, from the environment: migrations make the roles without one. Run by psql, as the owner; again
-- whenever a password is to change.
\set ON_ERROR_STOP on
\getenv commands CARTLOG_COMMANDS_PASSWORD
\getenv translator CARTLOG_TRANSLATOR_PASSWORD
\getenv projections CARTLOG_PROJECTIONS_PASSWORD
\getenv publisher CARTLOG_PUBLISHER_PASSWORD
\getenv operator CARTLOG_OPERATOR_PASSWORD
-- Else a server that logs statements would log these.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
ALTER ROLE cartlog_commands PASSWORD :'commands';
ALTER ROLE cartlog_translator PASSWORD :'translator';
ALTER ROLE cartlog_projections PASSWORD :'projections';
ALTER ROLE cartlog_publisher PASSWORD :'publisher';
ALTER ROLE cartlog_operator PASSWORD :'operator';
