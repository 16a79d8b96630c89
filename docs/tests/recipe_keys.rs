//! The reference of a recipe's keys is written from the types that read them.

use hatchery_common::recipe::Recipe;
use hatchery_docs::{Source, assert_generated, tables};
use serde_json::{Value, json};

/// What stands above the tables.
const HEAD: &str = "\
# The keys of a recipe

Written from the code by `cargo xtask docs`. [Recipes](../guide/recipes.md) has an example and explains the choices.

A recipe is TOML. A key that is not written has its default: that of the preset `tiny`, unless `preset` or `--preset` names
another. An unknown key is refused, with the nearest known one. On the command line `--set train.steps=500` sets a single key.

";

#[test]
fn the_reference_of_recipe_keys_is_up_to_date() {
    let defaults = ["tiny", "seed"].map(|preset| (preset, defaults_of(preset)));
    let source = Source::read(&["common/src"]);
    let text = format!("{HEAD}{}", tables(&source, "RecipeText", &defaults, "##"));
    assert_generated("docs/reference/recipe-keys.md", &text);
}

/// What a recipe with nothing but its preset comes to.
fn defaults_of(preset: &str) -> Value {
    let recipe = Recipe::parse(Some(preset), "", &[]).expect("a preset alone is a recipe");
    json!({
        "preset": "tiny",
        "data": recipe.data,
        "model": recipe.model,
        "train": recipe.train,
        "devices": with_absent(json!(recipe.devices), &[("exclude", json!([])), ("memory_bytes_min", json!(0))]),
        "replicate": with_absent(json!(recipe.replicate), &[("weights", json!("f32"))]),
        "queue": with_absent(json!(recipe.queue), &[("after", json!([]))]),
        "retain": recipe.retain,
    })
}

/// The part with the keys that are left out where they have their default.
fn with_absent(mut part: Value, absent: &[(&str, Value)]) -> Value {
    for (key, default) in absent {
        part.as_object_mut().map(|part| part.entry(*key).or_insert(default.clone()));
    }
    part
}
