//! Cross-origin requests, which browsers refuse unless the settings name the origins.

use actix_cors::Cors;
use actix_web::{
    http::{Method, header},
    middleware::Condition,
};

use super::refusal::POSITION;
use crate::settings::Origin;

/// Allows pages of these origins to call the service. Without origins it does nothing, and browsers refuse.
pub(crate) fn allow(origins: &[Origin]) -> Condition<Cors> {
    let cors = origins.iter().fold(Cors::default(), |cors, origin| cors.allowed_origin(origin));
    let correlated = header::HeaderName::from_static(event_store::correlation::HEADER);
    let cors = cors
        .allowed_methods([Method::GET, Method::POST])
        .allowed_headers([header::CONTENT_TYPE, header::HeaderName::from_static("traceparent"), correlated.clone()])
        .expose_headers([header::LINK, header::RETRY_AFTER, header::HeaderName::from_static(POSITION), correlated])
        // Other clients send an Origin, too. Only browsers enforce the rule.
        .block_on_origin_mismatch(false)
        .max_age(3600);
    Condition::new(!origins.is_empty(), cors)
}
