//! The error codes that every service shares. The rules of the domain add their own.

use std::fmt;

/// Defines the codes once: name, word, status, meaning.
macro_rules! error_codes {
    ($($name:ident = $word:literal, $status:literal, $meaning:literal;)*) => {
        /// A stable word for programs: the `code` of an error body.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $name,)*
        }

        impl ErrorCode {
            /// Every code, by status.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The word itself, in snake case.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),* }
            }

            /// The HTTP status that it comes with.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status),* }
            }

            /// Its meaning, in one sentence or two.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning),* }
            }
        }
    };
}

error_codes! {
    MalformedRequest = "malformed_request", 400, "The request line, the headers or the body cannot be read.";
    InvalidJson = "invalid_json", 400, "The body is not a JSON object.";
    InvalidField = "invalid_field", 400, "A field of the body has a value that is not allowed.";
    MissingField = "missing_field", 400, "A field of the body is missing.";
    DuplicateField = "duplicate_field", 400, "A field of the body is given twice.";
    InvalidPath = "invalid_path", 400, "An id in the path cannot be read.";
    InvalidQuery = "invalid_query", 400, "A query parameter cannot be read.";
    PathBodyMismatch = "path_body_mismatch", 400, "The body repeats another id than the path.";
    TlsRequired = "tls_required", 403, "The proxy answers this listener over TLS only. The request was not carried out.";
    UnknownRoute = "unknown_route", 404, "There is no such route.";
    MethodNotAllowed = "method_not_allowed", 405, "The route does not take this method. The header Allow lists those it takes.";
    RequestTimeout = "request_timeout", 408, "The request took too long to arrive.";
    BodyTooLarge = "body_too_large", 413, "The body is larger than 64 KiB.";
    UriTooLong = "uri_too_long", 414, "Path and query are longer than 8 KiB.";
    UnsupportedMediaType = "unsupported_media_type", 415, "The Content-Type is not application/json, or the body has a Content-Encoding.";
    TooManyRequests = "too_many_requests", 429, "This client sends too many requests a second, or at once, to the proxy.";
    HeadersTooLarge = "headers_too_large", 431, "The headers are larger than 16 KiB together.";
    Fault = "fault", 500, "An internal fault. The logs say more under the trace id in the message.";
    NotReady = "not_ready", 503, "The service is starting, stopping, or waits for something that it needs. From the proxy: no process can take the request.";
    Unavailable = "unavailable", 503, "The database or Kafka cannot be reached. Nothing was written.";
    Busy = "busy", 503, "The command timed out. Nothing was written.";
    OutcomeUnknown = "outcome_unknown", 503,
        "The reply was lost, so the command may have been carried out. Read, or send the command again. From the proxy with 502 or 504.";
    Behind = "behind", 503, "The log does not have min_position, or the read model did not reach it in time.";
    Parked = "parked", 503, "An event of this key could not be applied. An operator must retry or skip it.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ErrorCode;

    #[test]
    fn codes_are_unique_and_ordered_by_status() {
        let words: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), ErrorCode::ALL.len());
        assert!(ErrorCode::ALL.is_sorted_by_key(|code| code.status()));
    }

    #[test]
    fn proxy_answers_with_codes_of_this_list() {
        let known: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        let mut found = 0;
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/proxy")).unwrap() {
            let path = file.unwrap().path();
            if path.is_dir() {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for code in text.split(r#""code":""#).skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(known.contains(code), "{} answers {code:?}, which ErrorCode lacks", path.display());
                found += 1;
            }
        }
        assert!(found >= 13, "only {found} codes found");
    }
}
