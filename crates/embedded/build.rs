//! `sqlx::migrate!` embeds the migrations, and cargo does not know it.
#![allow(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

fn main() {
    println!("cargo::rerun-if-changed=../../migrations");
}
