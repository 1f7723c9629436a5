//! What an operator does, against a real PostgreSQL.

mod operating;
