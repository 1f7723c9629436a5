//! HTTP: the server and its limits, what requests are read into, and what is answered.

pub(crate) mod body;
pub(crate) mod command;
pub(crate) mod common;
pub(crate) mod contract;
mod cors;
mod edge;
pub(crate) mod error;
pub(crate) mod error_code;
pub mod lag;
pub(crate) mod live;
pub mod openapi;
pub(crate) mod page;
pub(crate) mod path;
pub(crate) mod position;
mod query;
pub(crate) mod refusal;
pub(crate) mod server;
pub(crate) mod streamed;
