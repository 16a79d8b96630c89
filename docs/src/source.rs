//! What the code says of the types that people write as TOML: their fields, and the doc comments on them.

use std::{collections::BTreeMap, fs};

use syn::{Attribute, Expr, ExprLit, Fields, Item, Lit, Meta, Type};
use walkdir::WalkDir;

use crate::root;

/// The structs and enums of some folders that can be read from TOML.
#[derive(Default)]
pub struct Source {
    structs: BTreeMap<String, Struct>,
    enums: BTreeMap<String, Vec<Choice>>,
}

/// A table of keys.
pub(crate) struct Struct {
    pub(crate) doc: String,
    pub(crate) fields: Vec<Field>,
}

/// One key.
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) doc: String,
    /// The type's name, without `Option` and `Vec`.
    pub(crate) of: String,
}

/// One word that an enum takes.
pub(crate) struct Choice {
    pub(crate) word: String,
    /// Whether a value stands under it, as in `{ word = ... }`.
    pub(crate) has_value: bool,
    pub(crate) doc: String,
}

impl Source {
    /// Reads every file below these folders, which are paths from the repository's root. Of two types of one name the one
    /// that was read first counts.
    pub fn read(folders: &[&str]) -> Self {
        let mut source = Self::default();
        for folder in folders {
            for entry in WalkDir::new(root().join(folder)).sort_by_file_name() {
                let path = entry.unwrap_or_else(|error| panic!("{folder}: {error}")).into_path();
                if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = fs::read_to_string(&path).expect("a file that was found can be read");
                    let file =
                        syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    file.items.into_iter().for_each(|item| source.take(item));
                }
            }
        }
        source
    }

    /// The struct of this name.
    pub(crate) fn table(&self, name: &str) -> Option<&Struct> {
        self.structs.get(name)
    }

    /// The words of the enum of this name.
    pub(crate) fn choices(&self, name: &str) -> &[Choice] {
        self.enums.get(name).map_or(&[], Vec::as_slice)
    }

    fn take(&mut self, item: Item) {
        match item {
            // What is read by way of another type is written as that one.
            Item::Struct(item) if is_read(&item.attrs) && serde(&item.attrs, "try_from").is_none() => {
                let Fields::Named(fields) = item.fields else { return };
                let fields = fields.named.into_iter().filter_map(|field| {
                    let name = serde(&field.attrs, "rename").or(Some(field.ident?.to_string()))?;
                    Some(Field { name, doc: doc(&field.attrs), of: innermost(&field.ty) })
                });
                let table = Struct { doc: doc(&item.attrs), fields: fields.collect() };
                self.structs.entry(item.ident.to_string()).or_insert(table);
            }
            Item::Enum(item) if is_read(&item.attrs) => {
                let rule = serde(&item.attrs, "rename_all");
                let choices = item.variants.iter().map(|variant| Choice {
                    word: serde(&variant.attrs, "rename")
                        .unwrap_or_else(|| renamed(&variant.ident.to_string(), rule.as_deref())),
                    has_value: !matches!(variant.fields, Fields::Unit),
                    doc: doc(&variant.attrs),
                });
                self.enums.entry(item.ident.to_string()).or_insert_with(|| choices.collect());
            }
            _ => {}
        }
    }
}

/// Whether serde reads the type.
fn is_read(attributes: &[Attribute]) -> bool {
    let derives = |attribute: &&Attribute| attribute.path().is_ident("derive");
    attributes.iter().filter(derives).any(|attribute| {
        let mut found = false;
        let _ = attribute.parse_nested_meta(|meta| {
            found |= meta.path.segments.last().is_some_and(|last| last.ident == "Deserialize");
            Ok(())
        });
        found
    })
}

/// The text of the doc comment, its lines joined by spaces.
fn doc(attributes: &[Attribute]) -> String {
    let line = |attribute: &Attribute| match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("doc") => match &meta.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    };
    attributes.iter().filter_map(line).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The text that serde's attribute gives for `key`.
fn serde(attributes: &[Attribute], key: &str) -> Option<String> {
    let mut found = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            if let Ok(value) = meta.value() {
                let value: Expr = value.parse()?;
                if let (true, Expr::Lit(ExprLit { lit: Lit::Str(text), .. })) =
                    (meta.path.is_ident(key), value)
                {
                    found = Some(text.value());
                }
            }
            Ok(())
        });
    }
    found
}

fn renamed(name: &str, rule: Option<&str>) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        let separator = match rule {
            Some("snake_case") => "_",
            Some("kebab-case") => "-",
            _ => "",
        };
        if c.is_uppercase() && !snake.is_empty() {
            snake.push_str(separator);
        }
        snake.extend(c.to_lowercase());
    }
    if rule.is_some() { snake } else { name.to_owned() }
}

/// The name of the type within any `Option` and `Vec`.
fn innermost(of: &Type) -> String {
    let Type::Path(path) = of else { return String::new() };
    let Some(last) = path.path.segments.last() else { return String::new() };
    if let syn::PathArguments::AngleBracketed(arguments) = &last.arguments
        && (last.ident == "Option" || last.ident == "Vec")
        && let Some(syn::GenericArgument::Type(inner)) = arguments.args.first()
    {
        return innermost(inner);
    }
    last.ident.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_and_an_enum_are_read_with_their_comments() {
        let text = "
            /// A table.
            #[derive(Clone, serde::Deserialize)]
            #[serde(default, deny_unknown_fields)]
            struct Table {
                /// A key
                /// in two lines.
                key: Option<Vec<Word>>,
                #[serde(skip_serializing_if = \"Vec::is_empty\", rename = \"other\")]
                another: u64,
            }
            #[derive(Deserialize)]
            #[serde(rename_all = \"snake_case\")]
            enum Word { /// One.
                FirstOne, Second(u8) }
            struct Unread { key: u8 }";
        let mut source = Source::default();
        syn::parse_file(text).expect("it is Rust").items.into_iter().for_each(|item| source.take(item));
        let table = source.table("Table").expect("it was read");
        let fields: Vec<_> = table.fields.iter().map(|f| (&*f.name, &*f.doc, &*f.of)).collect();
        assert_eq!(table.doc, "A table.");
        assert_eq!(fields, [("key", "A key in two lines.", "Word"), ("other", "", "u64")]);
        let words: Vec<_> = source.choices("Word").iter().map(|c| (&*c.word, c.has_value, &*c.doc)).collect();
        assert_eq!(words, [("first_one", false, "One."), ("second", true, "")]);
        assert!(source.table("Unread").is_none());
    }
}
