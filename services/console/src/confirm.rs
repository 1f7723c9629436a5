//! What a change will do, before it is done. It works without JavaScript: a page asks, and its form does it.

use askama::Template;
use service::{ErrorCode, HttpError};

use crate::{events::short, page::Frame};

/// The most characters of a name or a reason.
const LONGEST: usize = 500;

#[derive(Template)]
#[template(path = "confirm.html")]
pub(crate) struct Confirm {
    pub(crate) frame: Frame,
    /// What will happen, in sentences.
    pub(crate) consequences: Vec<String>,
    /// What it is done to: the values of the field `item`.
    pub(crate) items: Vec<String>,
    /// Where the form is sent.
    pub(crate) path: String,
    /// Where the operator goes instead.
    pub(crate) back: &'static str,
}

/// The form that confirms a change: who wants it, why, and what it is done to.
pub(crate) struct Confirmed {
    pub(crate) by: String,
    pub(crate) reason: String,
    pub(crate) items: Vec<String>,
}

impl Confirmed {
    /// Reads the form.
    ///
    /// # Errors
    /// 400 without a name or a reason.
    pub(crate) fn read(form: Vec<(String, String)>) -> Result<Self, HttpError> {
        let text = |name: &str| {
            let value = form.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim()).unwrap_or_default();
            if value.is_empty() {
                return Err(HttpError::new(ErrorCode::MissingField, format!("{name}: say it, because it is recorded")));
            }
            Ok(short(value, LONGEST))
        };
        let (by, reason) = (text("by")?, text("reason")?);
        Ok(Self { by, reason, items: form.into_iter().filter(|(key, _)| key == "item").map(|(_, value)| value).collect() })
    }

    /// Records in the log of this process what was done, by whom and why.
    pub(crate) fn record(&self, operation: &str, on: &str) {
        tracing::info!(operation, on, by = self.by, reason = self.reason, "operator changed something");
    }
}
