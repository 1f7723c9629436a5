//! Topics into the log and the log into topics, with a real broker and a real PostgreSQL. One program, so that it is linked once.

mod common;
mod dead_letters;
mod out_of_range;
mod publishing;
mod translating;
