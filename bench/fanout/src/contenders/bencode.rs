//! BitTorrent's way to write numbers, bytes, lists and tables.

use std::collections::BTreeMap;

/// A value. Keys of a table go by their bytes.
pub(super) enum Value {
    Number(u64),
    Bytes(Vec<u8>),
    Table(BTreeMap<&'static str, Value>),
}

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }

    pub(super) fn table<const N: usize>(entries: [(&'static str, Self); N]) -> Self {
        Self::Table(BTreeMap::from(entries))
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Number(number) => format!("i{number}e").into_bytes(),
            Self::Bytes(bytes) => [format!("{}:", bytes.len()).as_bytes(), bytes].concat(),
            Self::Table(entries) => {
                let entries =
                    entries.iter().flat_map(|(key, value)| [Self::text(key).to_bytes(), value.to_bytes()]);
                [b"d".to_vec(), entries.flatten().collect(), b"e".to_vec()].concat()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_lengths_stand_first() {
        let value = Value::table([("spam", Value::text("eggs")), ("cow", Value::Number(7))]);
        assert_eq!(value.to_bytes(), b"d3:cowi7e4:spam4:eggse");
    }
}
