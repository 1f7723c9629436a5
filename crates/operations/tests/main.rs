//! Tests of operations against a real PostgreSQL.

mod operating;
