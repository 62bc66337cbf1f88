//! Rules for names: questions, types, constants.

use std::collections::BTreeMap;

use syn::{FnArg, ImplItem, Item, ReturnType, Signature, TraitItem, Type, visit::Visit};

use crate::source::Crate;

/// Prefixes of names that ask a question.
const QUESTIONS: [&str; 6] = ["is_", "has_", "are_", "was_", "can_", "must_"];

/// Type names that occur more than once, each with its reason.
const SHARED_TYPE_NAMES: [(&str, &str); 0] = [];

#[test]
fn a_function_named_as_a_question_answers_it_and_changes_nothing() {
    let source = Crate::read();
    let mut functions = Functions::default();
    for (_, module) in source.modules() {
        functions.file = module.file.clone();
        functions.visit_file(&module.code);
    }
    assert!(functions.questions > 50, "the test finds the questions: {}", functions.questions);
    assert!(functions.wrong.is_empty(), "{:#?}", functions.wrong);
}

#[test]
fn a_type_name_is_unique_in_the_crate() {
    let source = Crate::read();
    let mut files: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (_, module) in source.modules() {
        for item in &module.code.items {
            let name = match item {
                Item::Struct(item) => &item.ident,
                Item::Enum(item) => &item.ident,
                Item::Union(item) => &item.ident,
                Item::Trait(item) => &item.ident,
                Item::Type(item) => &item.ident,
                Item::Macro(item) => {
                    let tokens = item.mac.tokens.to_string();
                    let (_, after) = tokens.split_once("struct ").unwrap_or_default();
                    let name = after.split(' ').next().filter(|name| !name.starts_with('$'));
                    if let Some(name) = name.filter(|name| !name.is_empty()) {
                        files.entry(name.to_owned()).or_default().push(&module.file);
                    }
                    continue;
                }
                _ => continue,
            };
            files.entry(name.to_string()).or_default().push(&module.file);
        }
    }
    assert!(files.len() > 300, "the test finds the types: {}", files.len());
    assert!(files.contains_key("ServerConfig"), "the test finds the types that macros define");
    files.retain(|name, files| {
        files.len() > 1 && !SHARED_TYPE_NAMES.iter().any(|(shared, _)| shared == name)
    });
    assert!(files.is_empty(), "{files:#?}");
}

#[test]
fn constants_say_what_they_bound() {
    let source = Crate::read();
    let mut wrong = Vec::new();
    for (_, module) in source.modules() {
        for item in &module.code.items {
            if let Item::Const(item) = item {
                let name = item.ident.to_string();
                // `MAX_` is the usual prefix; `PATIENCE` names neither waiter nor event.
                if name.starts_with("MOST")
                    || name.starts_with("LONGEST")
                    || name.contains("PATIENCE")
                {
                    wrong.push(format!("{}: {name}", module.file));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Checks the signatures of free functions, methods and trait methods.
#[derive(Default)]
struct Functions {
    file: String,
    questions: usize,
    wrong: Vec<String>,
}

impl Functions {
    fn check(&mut self, signature: &Signature) {
        let name = signature.ident.to_string();
        if !QUESTIONS.iter().any(|question| name.starts_with(question)) {
            return;
        }
        self.questions += 1;
        // `self` by value is fine for a `Copy` type.
        let only_looks = signature.inputs.first().is_some_and(|first| match first {
            FnArg::Receiver(receiver) => receiver.mutability.is_none(),
            FnArg::Typed(_) => false,
        });
        let returns_bool = match &signature.output {
            ReturnType::Type(_, output) => {
                matches!(&**output, Type::Path(path) if path.path.is_ident("bool"))
            }
            ReturnType::Default => false,
        };
        if !only_looks || !returns_bool {
            self.wrong.push(format!("{}: {name}", self.file));
        }
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item(&mut self, item: &'ast Item) {
        if let Item::Fn(function) = item {
            self.check(&function.sig);
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if let ImplItem::Fn(function) = item {
            self.check(&function.sig);
        }
        syn::visit::visit_impl_item(self, item);
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        if let TraitItem::Fn(function) = item {
            self.check(&function.sig);
        }
        syn::visit::visit_trait_item(self, item);
    }
}
