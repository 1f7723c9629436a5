//! `event-model.json` and the code have the same events, commands, read models, automations and specifications, with the same fields.
//!
//! The code's side is read from the sources: the events, the slices, and the committed OpenAPI documents, which the routes are held against.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot continue fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use event_model::{Cardinality, Context, Direction, Element, EventModel, Field, Kind, Slice, StepKind};
use serde_json::Value;
use syn::{Attribute, Expr, Fields, FnArg, ImplItem, Item, ItemImpl, Lit, Type, visit::Visit};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn model() -> EventModel {
    EventModel::parse(&std::fs::read_to_string(root().join("event-model.json")).unwrap())
        .unwrap_or_else(|error| panic!("event-model.json: {error}"))
}

/// `Add Item` as a type's name.
fn camel(title: &str) -> String {
    title.split(' ').collect()
}

/// `Add Item` as the name of a file, an operation or a projection.
fn snake(title: &str) -> String {
    title.replace(' ', "_").to_lowercase()
}

/// Collects the differences between the model and the code, in words.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn compare<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        model: &BTreeMap<K, V>,
        code: &BTreeMap<K, V>,
    ) {
        for (key, in_model) in model {
            match code.get(key) {
                None => self.0.push(format!("{what} {key:?} is in event-model.json, but not in the code")),
                Some(in_code) if in_code != in_model => {
                    self.0.push(format!("{what} {key:?} differs:\n  event-model.json {in_model:?}\n  code             {in_code:?}"));
                }
                Some(_) => {}
            }
        }
        for key in code.keys().filter(|key| !model.contains_key(key)) {
            self.0.push(format!("{what} {key:?} is in the code, but not in event-model.json"));
        }
    }

    fn are_none(self) {
        assert!(self.0.is_empty(), "{}", self.0.join("\n"));
    }
}

/// A field's name, type, whether it is an id, and the fields inside it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Shape {
    name: String,
    kind: String,
    list: bool,
    id: bool,
    inside: BTreeSet<Shape>,
}

fn shapes(fields: &[Field]) -> BTreeSet<Shape> {
    let shape = |field: &Field| Shape {
        name: field.name.clone(),
        kind: field.kind.clone(),
        list: field.cardinality == Cardinality::List,
        id: field.id_attribute,
        inside: shapes(&field.subfields),
    };
    fields.iter().map(shape).collect()
}

/// A source file of a service that has specifications.
struct SliceFile {
    name: String,
    items: Vec<Item>,
}

impl SliceFile {
    fn all() -> Vec<Self> {
        let mut files = vec![];
        for service in std::fs::read_dir(root().join("services")).unwrap() {
            for file in std::fs::read_dir(service.unwrap().path().join("src")).unwrap() {
                let path = file.unwrap().path();
                if path.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                let items = syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap().items;
                let file = Self { name: path.file_stem().unwrap().to_str().unwrap().to_owned(), items };
                if file.module("specifications").is_some() {
                    files.push(file);
                }
            }
        }
        files
    }

    fn module(&self, name: &str) -> Option<&[Item]> {
        self.items.iter().find_map(|item| match item {
            Item::Mod(module) if module.ident == name => module.content.as_ref().map(|(_, items)| items.as_slice()),
            _ => None,
        })
    }

    /// The names of the test functions. A property is no example, so `proptest!` does not count.
    fn specifications(&self) -> Vec<String> {
        let tests = self.module("specifications").unwrap().iter().filter_map(|item| match item {
            Item::Fn(function) if function.attrs.iter().any(is_test) => Some(function.sig.ident.to_string()),
            _ => None,
        });
        tests.collect()
    }

    /// Every `impl OF for …`, with the name of the type.
    fn impls(&self, of: &str) -> Vec<(String, &ItemImpl)> {
        let impls = self.items.iter().filter_map(|item| match item {
            Item::Impl(one) if one.trait_.as_ref().is_some_and(|(_, path, _)| path.segments.last().unwrap().ident == of) => {
                Some((last_segment(&one.self_ty)?, one))
            }
            _ => None,
        });
        impls.collect()
    }

    fn structs(&self) -> impl Iterator<Item = &syn::ItemStruct> {
        self.items.iter().filter_map(|item| match item {
            Item::Struct(one) => Some(one),
            _ => None,
        })
    }

    fn function(&self, name: &str) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Fn(function) if function.sig.ident == name))
    }

    /// The events that a command appends.
    fn appended(implementation: &ItemImpl) -> BTreeSet<String> {
        struct Appended(BTreeSet<String>);
        impl Visit<'_> for Appended {
            fn visit_expr_struct(&mut self, expression: &syn::ExprStruct) {
                let segments: Vec<_> = expression.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
                if let [first, event] = segments.as_slice()
                    && first == "DomainEvent"
                {
                    self.0.insert(event.clone());
                }
                syn::visit::visit_expr_struct(self, expression);
            }

            // `vec![…]`
            fn visit_macro(&mut self, call: &syn::Macro) {
                let parts = call.parse_body_with(syn::punctuated::Punctuated::<Expr, syn::Token![,]>::parse_terminated);
                parts.into_iter().flatten().for_each(|part| self.visit_expr(&part));
            }
        }
        let mut appended = Appended(BTreeSet::new());
        appended.visit_item_impl(implementation);
        appended.0
    }

    /// The streams that its read models and automations follow: those of projections, and those that live reads fold.
    fn followed(&self) -> BTreeSet<String> {
        let projected = self.impls("Projection").into_iter().filter_map(|(_, one)| associated_type(one, "Event"));
        let folded = self.structs().flat_map(|one| &one.attrs).filter(|attribute| attribute.path().is_ident("state_query"));
        let folded = folded.map(|attribute| attribute.parse_args::<syn::Ident>().unwrap().to_string());
        if self.impls("Decision").is_empty() { projected.chain(folded).collect() } else { projected.collect() }
    }
}

fn is_test(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "test")
}

fn last_segment(kind: &Type) -> Option<String> {
    let Type::Path(path) = kind else { return None };
    Some(path.path.segments.last()?.ident.to_string())
}

fn associated_type(of: &ItemImpl, name: &str) -> Option<String> {
    of.items.iter().find_map(|item| match item {
        ImplItem::Type(kind) if kind.ident == name => last_segment(&kind.ty),
        _ => None,
    })
}

/// The texts in an associated constant.
fn constant(of: &ItemImpl, name: &str) -> Vec<String> {
    struct Texts(Vec<String>);
    impl Visit<'_> for Texts {
        fn visit_lit_str(&mut self, text: &syn::LitStr) {
            self.0.push(text.value());
        }
    }
    let mut texts = Texts(vec![]);
    for item in &of.items {
        if let ImplItem::Const(constant) = item
            && constant.ident == name
        {
            texts.visit_expr(&constant.expr);
        }
    }
    texts.0
}

/// A field of a struct or an event, by its Rust type.
fn shape(field: &syn::Field, others: &BTreeMap<String, Fields>) -> Shape {
    let Type::Path(path) = &field.ty else { panic!("a field that is no path") };
    let segment = path.path.segments.last().unwrap();
    let list = segment.ident == "Vec";
    let kind = match &segment.arguments {
        syn::PathArguments::AngleBracketed(arguments) if list => {
            let syn::GenericArgument::Type(inside) = &arguments.args[0] else { panic!("a list of no type") };
            last_segment(inside).unwrap()
        }
        _ => segment.ident.to_string(),
    };
    let (kind, inside) = match kind.as_str() {
        "CartId" | "ItemId" | "ProductId" => ("UUID", None),
        "Price" | "Total" => ("Decimal", None),
        "Inventory" => ("Int", None),
        "i64" | "Position" => ("Long", None),
        "String" | "Description" | "Image" => ("String", None),
        other => ("Custom", Some(others.get(other).unwrap_or_else(|| panic!("{other}: a type that the model has no name for")))),
    };
    Shape {
        name: field.ident.as_ref().unwrap().to_string(),
        kind: kind.to_owned(),
        list,
        id: field.attrs.iter().any(|attribute| attribute.path().is_ident("id")),
        inside: inside.into_iter().flatten().map(|field| shape(field, others)).collect(),
    }
}

struct Events {
    events: BTreeMap<String, BTreeSet<Shape>>,
    streams: BTreeMap<String, BTreeSet<String>>,
    structs: BTreeMap<String, Fields>,
}

fn events() -> Events {
    let source = std::fs::read_to_string(root().join("crates/cart-events/src/event.rs")).unwrap();
    let items = syn::parse_file(&source).unwrap().items;
    let structs: BTreeMap<_, _> = items
        .iter()
        .filter_map(|item| if let Item::Struct(one) = item { Some((one.ident.to_string(), one.fields.clone())) } else { None })
        .collect();
    let domain =
        items.iter().find_map(|item| if let Item::Enum(one) = item { (one.ident == "DomainEvent").then_some(one) } else { None }).unwrap();
    let events =
        domain.variants.iter().map(|event| (event.ident.to_string(), event.fields.iter().map(|field| shape(field, &structs)).collect()));
    let streams = domain.attrs.iter().filter(|attribute| attribute.path().is_ident("stream")).map(|attribute| {
        let parts: syn::punctuated::Punctuated<Expr, syn::Token![,]> =
            attribute.parse_args_with(syn::punctuated::Punctuated::parse_terminated).unwrap();
        let name = |expression: &Expr| {
            let Expr::Path(path) = expression else { panic!("a stream of no names") };
            path.path.segments[0].ident.to_string()
        };
        let Expr::Array(events) = &parts[1] else { panic!("a stream without a list of events") };
        (name(&parts[0]), events.elems.iter().map(name).collect())
    });
    Events { events: events.collect(), streams: streams.collect(), structs }
}

/// An operation of an OpenAPI document, and the document.
struct Operation {
    service: String,
    path: String,
    is_command: bool,
    id: String,
    listener: String,
    operation: Value,
    document: Value,
}

fn operations() -> Vec<Operation> {
    let mut found = vec![];
    // The console shows the model. Its pages are no slices.
    for service in
        std::fs::read_dir(root().join("services")).unwrap().map(Result::unwrap).filter(|service| service.file_name() != "console")
    {
        let document: Value = serde_json::from_str(&std::fs::read_to_string(service.path().join("openapi.json")).unwrap()).unwrap();
        for (path, methods) in document["paths"].as_object().unwrap() {
            // The other routes are those that every service has.
            for (method, operation) in methods.as_object().unwrap().iter().filter(|_| path.contains('{')) {
                found.push(Operation {
                    service: service.file_name().into_string().unwrap(),
                    path: path.clone(),
                    is_command: method == "post",
                    id: operation["operationId"].as_str().unwrap().to_owned(),
                    listener: operation["tags"][0].as_str().unwrap().to_owned(),
                    operation: operation.clone(),
                    document: document.clone(),
                });
            }
        }
    }
    found
}

impl Operation {
    fn resolved<'a>(&'a self, schema: &'a Value) -> (&'a str, &'a Value) {
        if let Some(choices) = schema["oneOf"].as_array() {
            return self.resolved(choices.iter().find(|choice| choice["type"] != "null").unwrap());
        }
        match schema["$ref"].as_str().map(|name| name.rsplit('/').next().unwrap()) {
            Some(name) => (name, &self.document["components"]["schemas"][name]),
            None => ("", schema),
        }
    }

    fn fields(&self, schema: &Value) -> BTreeSet<Shape> {
        let (_, schema) = self.resolved(schema);
        let field = |(name, of): (&String, &Value)| {
            let (_, outer) = self.resolved(of);
            let list = outer["type"] == "array";
            let (type_name, inner) = self.resolved(if list { &outer["items"] } else { of });
            let kind = match (inner["type"].as_str().unwrap(), inner["format"].as_str(), type_name) {
                ("string", Some("uuid"), _) => "UUID",
                ("string", _, "Price" | "Total") => "Decimal",
                ("string", ..) => "String",
                ("integer", Some("int64"), _) => "Long",
                ("integer", ..) => "Int",
                _ => "Custom",
            };
            let inside = if kind == "Custom" { self.fields(inner) } else { BTreeSet::new() };
            Shape { name: name.clone(), kind: kind.to_owned(), list, id: false, inside }
        };
        schema["properties"].as_object().into_iter().flatten().map(field).collect()
    }

    /// The fields of the path, and of the body that is sent or answered. The path's are ids.
    fn shapes(&self) -> (bool, BTreeSet<Shape>) {
        let content = |of: &Value| of["content"]["application/json"]["schema"].clone();
        let schema = content(if self.is_command { &self.operation["requestBody"] } else { &self.operation["responses"]["200"] });
        let list = schema["type"] == "array";
        let mut shapes = self.fields(if list { &schema["items"] } else { &schema });
        for parameter in self.operation["parameters"].as_array().unwrap().iter().filter(|parameter| parameter["in"] == "path") {
            let name = parameter["name"].as_str().unwrap().to_owned();
            let id = Shape { name, kind: "UUID".to_owned(), list: false, id: true, inside: BTreeSet::new() };
            shapes.retain(|shape| shape.name != id.name);
            shapes.insert(id);
        }
        (list, shapes)
    }
}

fn of_kind(model: &EventModel, kind: Kind) -> impl Iterator<Item = &Element> {
    model.elements().filter(move |element| element.kind == kind)
}

#[test]
fn events_and_their_fields_are_the_codes() {
    let (model, code) = (model(), events());
    let mut differences = Differences::default();
    let logged = of_kind(&model, Kind::Event).filter(|event| event.context == Context::Internal);
    differences.compare("event", &logged.map(|event| (camel(&event.title), shapes(&event.fields))).collect(), &code.events);
    let messages = of_kind(&model, Kind::Event).filter(|event| event.context == Context::External);
    let messages = messages.map(|event| ((snake(&event.slice), camel(&event.title)), shapes(&event.fields))).collect();
    let in_code = SliceFile::all().into_iter().flat_map(|file| {
        let named = file.structs().filter(|one| one.ident.to_string().ends_with("Message"));
        named
            .map(|one| ((file.name.clone(), one.ident.to_string()), one.fields.iter().map(|field| shape(field, &code.structs)).collect()))
            .collect::<Vec<_>>()
    });
    differences.compare("message", &messages, &in_code.collect());
    differences.are_none();
}

#[test]
fn commands_and_their_fields_are_the_codes() {
    let (model, code) = (model(), events());
    let mut differences = Differences::default();
    let operations: BTreeMap<_, _> = operations().into_iter().filter(|one| one.is_command).map(|one| (one.id.clone(), one)).collect();
    let mut in_code = BTreeMap::new();
    for file in SliceFile::all() {
        for (command, decision) in file.impls("Decision") {
            let of_struct = file.structs().find(|one| one.ident == command).unwrap();
            let operation = operations.values().find(|operation| camel_of_snake(&operation.id) == command);
            let fields = match operation {
                Some(operation) => operation.shapes().1,
                None => of_struct.fields.iter().map(|field| shape(field, &code.structs)).collect(),
            };
            let route = operation.map(|operation| (operation.service.clone(), operation.path.clone()));
            in_code.insert((file.name.clone(), command), (without_ids(fields, route.is_none()), route, SliceFile::appended(decision)));
        }
    }
    let in_model = of_kind(&model, Kind::Command).map(|command| {
        let appended = command.dependencies.iter().filter(|arrow| arrow.direction == Direction::Outbound).map(|arrow| camel(&arrow.title));
        let route = command.service.clone().zip(command.api_endpoint.clone());
        let fields = without_ids(shapes(&command.fields), route.is_none());
        ((snake(&command.slice), camel(&command.title)), (fields, route, appended.collect()))
    });
    differences.compare("command", &in_model.collect(), &in_code);
    differences.are_none();
}

fn camel_of_snake(name: &str) -> String {
    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

/// A command without a route has no path that names an id.
fn without_ids(fields: BTreeSet<Shape>, without: bool) -> BTreeSet<Shape> {
    fields.into_iter().map(|field| Shape { id: field.id && !without, ..field }).collect()
}

#[test]
fn read_models_and_their_fields_are_the_codes() {
    let (model, code) = (model(), events());
    let mut differences = Differences::default();
    let queries = operations()
        .into_iter()
        .filter(|one| !one.is_command)
        .map(|one| (one.id.clone(), (one.service.clone(), one.path.clone(), one.shapes())));
    let in_model = of_kind(&model, Kind::Readmodel).map(|read| {
        let (service, path) = (read.service.clone().unwrap_or_default(), read.api_endpoint.clone().unwrap_or_default());
        (snake(&read.title), (service, path, (read.list_element, shapes(&read.fields))))
    });
    differences.compare("read model", &in_model.collect(), &queries.collect());

    let followed = |element: &Element| -> BTreeSet<String> {
        element
            .dependencies
            .iter()
            .filter(|arrow| arrow.direction == Direction::Inbound && arrow.element_type == Kind::Event)
            .map(|arrow| camel(&arrow.title))
            .collect()
    };
    let in_model =
        model.slices.iter().flat_map(|slice| slice.readmodels.iter().map(|read| (read.id.clone(), (snake(&slice.title), followed(read)))));
    let files: BTreeMap<_, _> = SliceFile::all().into_iter().map(|file| (file.name.clone(), file)).collect();
    let in_code = of_kind(&model, Kind::Readmodel).map(|read| {
        let events =
            files.get(&snake(&read.slice)).into_iter().flat_map(SliceFile::followed).flat_map(|stream| code.streams[&stream].clone());
        (read.id.clone(), (snake(&read.slice), events.collect()))
    });
    differences.compare("events of the read model", &in_model.collect(), &in_code.collect());

    let tables = model.slices.iter().flat_map(|slice| slice.tables.iter().map(|table| ((snake(&slice.title), table.title.clone()), ())));
    let in_code = files.values().flat_map(|file| {
        file.impls("Projection")
            .into_iter()
            .flat_map(|(_, one)| constant(one, "TABLES"))
            .map(|table| ((file.name.clone(), table), ()))
            .collect::<Vec<_>>()
    });
    differences.compare("table", &tables.collect(), &in_code.collect());
    differences.are_none();
}

#[test]
fn automations_and_translations_are_the_codes() {
    let (model, code) = (model(), events());
    let mut differences = Differences::default();
    let in_model = of_kind(&model, Kind::Automation).map(|processor| {
        let inbound = processor.dependencies.iter().filter(|arrow| arrow.direction == Direction::Inbound).map(|arrow| camel(&arrow.title));
        (snake(&processor.title), (snake(&processor.slice), inbound.collect::<BTreeSet<_>>()))
    });
    let in_code = SliceFile::all().into_iter().flat_map(|file| {
        let mut found = vec![];
        for (automation, _) in file.impls("Automation") {
            let (_, projection) = file.impls("Projection").into_iter().find(|(of, _)| *of == automation).unwrap();
            let events = code.streams[&associated_type(projection, "Event").unwrap()].clone();
            found.push((constant(projection, "NAME").remove(0), (file.name.clone(), events)));
        }
        if file.function("translate") {
            let message = file.structs().map(|one| one.ident.to_string()).find(|name| name.ends_with("Message")).unwrap();
            found.push((file.name.clone(), (file.name.clone(), BTreeSet::from([message]))));
        }
        found
    });
    differences.compare("automation", &in_model.collect(), &in_code.collect());
    differences.are_none();
}

#[test]
fn specifications_are_the_codes_tests() {
    let model = model();
    let mut differences = Differences::default();
    let in_model =
        model.slices.iter().flat_map(|slice| slice.specifications.iter().map(|one| ((snake(&slice.title), snake(&one.title)), ())));
    let in_code = SliceFile::all()
        .into_iter()
        .flat_map(|file| file.specifications().into_iter().map(|test| ((file.name.clone(), test), ())).collect::<Vec<_>>());
    differences.compare("specification", &in_model.collect(), &in_code.collect());

    // Each refusal is specified, and each specified one is a refusal of the slice.
    let refused = model.slices.iter().filter(|slice| !slice.commands.is_empty()).flat_map(|slice| {
        let errors = slice.specifications.iter().flat_map(|one| &one.then).filter(|step| step.kind == StepKind::SpecError);
        errors.map(|step| ((snake(&slice.title), step.title.clone()), ()))
    });
    let in_code = SliceFile::all().into_iter().flat_map(|file| {
        let codes = file.impls("Refusal").into_iter().flat_map(|(_, one)| codes(one)).collect::<Vec<_>>();
        codes.into_iter().map(|code| ((file.name.clone(), code), ())).collect::<Vec<_>>()
    });
    differences.compare("refusal", &refused.collect(), &in_code.collect());
    differences.are_none();
}

/// The texts in `fn code`.
fn codes(of: &ItemImpl) -> Vec<String> {
    struct Texts(Vec<String>);
    impl Visit<'_> for Texts {
        fn visit_lit(&mut self, literal: &Lit) {
            if let Lit::Str(text) = literal {
                self.0.push(text.value());
            }
        }
    }
    let mut texts = Texts(vec![]);
    for item in &of.items {
        if let ImplItem::Fn(function) = item
            && function.sig.ident == "code"
            && matches!(function.sig.inputs.first(), Some(FnArg::Receiver(_)))
        {
            texts.visit_block(&function.block);
        }
    }
    texts.0
}

#[test]
fn actors_are_those_of_the_listeners() {
    let model = model();
    let mut differences = Differences::default();
    let actors = |slice: &Slice| slice.actors.iter().map(|actor| actor.name.clone()).collect::<BTreeSet<_>>();
    let in_model = model.slices.iter().filter(|slice| !slice.actors.is_empty()).map(|slice| (snake(&slice.title), actors(slice))).collect();
    let mut in_code: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for operation in operations() {
        let element = model.elements().find(|element| element.api_endpoint.as_ref() == Some(&operation.path));
        let actor = if operation.listener == "public" { "Shopper" } else { "Back Office" };
        let slice = element.map_or_else(|| operation.id.clone(), |element| snake(&element.slice));
        in_code.entry(slice).or_default().insert(actor.to_owned());
    }
    differences.compare("actors of the slice", &in_model, &in_code);
    differences.are_none();
}

#[test]
fn ids_are_unique_and_every_link_leads_somewhere() {
    let model = model();
    let steps = |slice: &Slice| -> Vec<String> {
        slice.specifications.iter().flat_map(|one| one.given.iter().chain(&one.when).chain(&one.then)).map(|step| step.id.clone()).collect()
    };
    let ids = model.slices.iter().flat_map(|slice| {
        let elements = slice.elements().map(|element| element.id.clone());
        let others = slice.tables.iter().map(|table| table.id.clone()).chain(slice.specifications.iter().map(|one| one.id.clone()));
        [slice.id.clone()].into_iter().chain(elements).chain(others).chain(steps(slice)).collect::<Vec<_>>()
    });
    let mut seen = BTreeSet::new();
    for id in ids {
        assert!(seen.insert(id.clone()), "{id} is there twice");
    }
    let elements: BTreeMap<_, _> = model.elements().map(|element| (element.id.as_str(), element)).collect();
    for element in model.elements() {
        for arrow in &element.dependencies {
            let other = elements.get(arrow.id.as_str()).unwrap_or_else(|| panic!("{}: there is no {}", element.id, arrow.id));
            assert_eq!((&arrow.title, arrow.element_type), (&other.title, other.kind), "{}: {}", element.id, arrow.id);
            let back = other.dependencies.iter().filter(|back| back.id == element.id && back.direction != arrow.direction).count();
            assert_eq!(back, 1, "{} and {} disagree about their arrow", element.id, other.id);
        }
    }
    for (index, slice) in model.slices.iter().enumerate() {
        assert_eq!(slice.index, index, "{}", slice.id);
        assert!(slice.elements().all(|element| element.slice == slice.title), "{}", slice.id);
        for one in &slice.specifications {
            assert_eq!(one.slice_name, slice.title, "{}", one.id);
            assert!(elements.contains_key(one.linked_id.as_str()), "{}", one.id);
            for step in one.given.iter().chain(&one.when).chain(&one.then).filter(|step| step.kind != StepKind::SpecError) {
                let element = elements[step.linked_id.as_deref().unwrap_or_default()];
                let kind = match step.kind {
                    StepKind::SpecCommand => Kind::Command,
                    StepKind::SpecReadmodel => Kind::Readmodel,
                    StepKind::SpecEvent | StepKind::SpecError => Kind::Event,
                };
                assert_eq!((&step.title, kind), (&element.title, element.kind), "{}", step.id);
                for field in &step.fields {
                    assert!(element.fields.iter().any(|known| known.name == field.name), "{}: {}", step.id, field.name);
                }
            }
        }
    }
}
