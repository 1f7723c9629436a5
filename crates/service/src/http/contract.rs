//! The part of the OpenAPI document that follows from a route's kind: the errors that it can answer, and how a command answers.

use std::collections::BTreeMap;

use utoipa::openapi::{
    Content, HeaderBuilder, ObjectBuilder, OneOfBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder, Schema, ServerBuilder, Type,
    header::Header,
    path::{Operation, ParameterIn},
    schema::ArrayItems,
    tag::TagBuilder,
};

use super::{error_code::ErrorCode, refusal::POSITION};

/// The tag of the routes for shoppers.
const PUBLIC: &str = "public";
/// The tags of the document. The first two are the proxy's listeners.
const TAGS: [(&str, &str); 3] = [
    (PUBLIC, "Routes for shoppers. The proxy serves them on its public listener."),
    ("internal", "Routes for the back office. The proxy serves them on its internal listener."),
    ("operations", "Routes for probes and monitoring. The proxy does not serve them."),
];

/// Completes a document of a service with this default port. Each operation gets the errors of its kind; it declares those of its own with
/// their codes as the description, such as "cart_full or out_of_stock".
pub(crate) fn complete(document: &mut OpenApi, port: &str) {
    let server = |url: String, description: &str| ServerBuilder::new().url(url).description(Some(description)).build();
    document.servers = Some(vec![
        server(format!("http://127.0.0.1:{port}"), "the service itself, on its default port"),
        server("http://127.0.0.1:8080".to_owned(), "the public listener of Docker Compose: routes with the tag `public`"),
        server("http://127.0.0.1:8090".to_owned(), "the internal listener of Docker Compose: routes with the tag `internal`"),
    ]);
    document.tags = Some(TAGS.map(|(name, about)| TagBuilder::new().name(name).description(Some(about)).build()).into());
    // No route asks for credentials.
    document.security = Some(vec![]);

    let mut shared = BTreeMap::new();
    for item in document.paths.paths.values_mut() {
        let command = item.post.as_mut().map(|operation| (operation, true));
        for (operation, is_command) in item.get.as_mut().map(|operation| (operation, false)).into_iter().chain(command) {
            let tags = operation.tags.iter().flatten();
            if tags.clone().any(|tag| tag == "operations") {
                continue;
            }
            let is_public = tags.clone().any(|tag| tag == PUBLIC);
            for (status, codes) in errors(operation, is_command, is_public) {
                let answer = match codes.as_slice() {
                    [code] if meaning(code).is_some() => {
                        let name = name(code);
                        shared.insert(name.clone(), RefOr::T(refused(status, &codes)));
                        RefOr::Ref(Ref::from_response_name(name))
                    }
                    codes => RefOr::T(refused(status, codes)),
                };
                operation.responses.responses.insert(status.to_string(), answer);
            }
            if is_command && let Some(RefOr::T(done)) = operation.responses.responses.get_mut("200") {
                state_the_position(done);
            }
        }
    }
    document.components.get_or_insert_default().responses.extend(shared);
}

/// The statuses of an operation's errors, each with its codes.
fn errors(operation: &Operation, is_command: bool, is_public: bool) -> BTreeMap<u16, Vec<String>> {
    let parameters = operation.parameters.as_deref().unwrap_or_default();
    let has_path = parameters.iter().any(|parameter| parameter.parameter_in == ParameterIn::Path);
    let has_query = parameters.iter().any(|parameter| parameter.parameter_in == ParameterIn::Query);
    let has_body = operation.request_body.is_some();
    let can_answer = |code| match code {
        ErrorCode::MalformedRequest
        | ErrorCode::RequestTimeout
        | ErrorCode::UriTooLong
        | ErrorCode::TooManyRequests
        | ErrorCode::HeadersTooLarge
        | ErrorCode::Fault
        | ErrorCode::NotReady => true,
        ErrorCode::InvalidJson
        | ErrorCode::InvalidField
        | ErrorCode::MissingField
        | ErrorCode::DuplicateField
        | ErrorCode::UnsupportedMediaType => has_body,
        ErrorCode::PathBodyMismatch => has_body && has_path,
        ErrorCode::InvalidPath => has_path,
        ErrorCode::InvalidQuery => has_query,
        ErrorCode::TlsRequired => is_public,
        ErrorCode::BodyTooLarge | ErrorCode::OutcomeUnknown => is_command,
        // A route with parameters reads or writes the log.
        ErrorCode::Unavailable | ErrorCode::Busy => has_path || has_query,
        // No documented route answers the first two. A route declares the others.
        ErrorCode::UnknownRoute | ErrorCode::MethodNotAllowed | ErrorCode::Behind | ErrorCode::Parked => false,
    };
    let mut errors: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for code in ErrorCode::ALL.iter().filter(|code| can_answer(**code)) {
        errors.entry(code.status()).or_default().push(code.as_str().to_owned());
    }
    // The proxy's, if a service went away or did not answer.
    for status in [502, 504] {
        errors.insert(status, vec![ErrorCode::OutcomeUnknown.as_str().to_owned()]);
    }
    for (status, answer) in &operation.responses.responses {
        let (Ok(status @ 400..), RefOr::T(answer)) = (status.parse(), answer) else { continue };
        let codes = errors.entry(status).or_default();
        let declared = answer.description.split([',', ' ']).filter(|word| !word.is_empty() && *word != "or");
        for code in declared {
            if !codes.iter().any(|known| known == code) {
                codes.push(code.to_owned());
            }
        }
    }
    errors
}

/// An answer that is not a success: the body of [`ErrorBody`](super::error::ErrorBody) with these codes.
fn refused(status: u16, codes: &[String]) -> Response {
    let described = codes.iter().map(|code| match meaning(code) {
        Some(meaning) => format!("`{code}`: {meaning}"),
        None => format!("`{code}`"),
    });
    let text = |about| ObjectBuilder::new().schema_type(Type::String).description(Some(about));
    let body = ObjectBuilder::new()
        .property("code", text("A stable word for programs.").enum_values(Some(codes.iter().map(String::as_str))))
        .property("message", text("A sentence for people. It may change."))
        .required("code")
        .required("message");
    let mut answer = ResponseBuilder::new()
        .description(described.collect::<Vec<_>>().join("\n\n"))
        .content("application/json", Content::new(Some(Schema::from(body))));
    if matches!(status, 429 | 503) {
        answer = answer.header("Retry-After", number("Seconds after which the client may try again."));
    }
    answer.build()
}

/// Describes the pair of an id and a position for tools of every age: new ones read `prefixItems`, older ones `items`. Adds the header.
fn state_the_position(done: &mut Response) {
    for content in done.content.values_mut() {
        if let Some(RefOr::T(Schema::Array(pair))) = &mut content.schema
            && !pair.prefix_items.is_empty()
        {
            let either = pair.prefix_items.iter().fold(OneOfBuilder::new(), |either, one| either.item(one.clone()));
            pair.items = ArrayItems::RefOrSchema(Box::new(RefOr::T(either.into())));
            pair.min_items = Some(pair.prefix_items.len());
            pair.max_items = Some(pair.prefix_items.len());
        }
    }
    done.headers.insert(POSITION.to_owned(), number("The position of the command's last event in the log, as in the body."));
}

fn number(about: &str) -> Header {
    HeaderBuilder::new().schema(ObjectBuilder::new().schema_type(Type::Integer)).description(Some(about)).build()
}

fn meaning(code: &str) -> Option<&'static str> {
    ErrorCode::ALL.iter().find(|known| known.as_str() == code).map(|known| known.meaning())
}

/// The name of a shared answer: `TooManyRequests` for `too_many_requests`.
fn name(code: &str) -> String {
    let capitalised = |word: &str| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)).collect::<String>();
    code.split('_').map(capitalised).collect()
}
