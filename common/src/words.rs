//! Enumerations that have one word for each value, in files, on the wire and on the screen.

/// Gives an enumeration its words: `ALL`, `name`, and `FromStr`, whose error names the field.
macro_rules! words {
    ($type:ident, $field:literal: $($value:ident = $word:literal),+ $(,)?) => {
        impl $type {
            /// Every value.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$value),+];

            /// In one word, for programs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)+
                }
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::field::FieldError;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                Self::ALL.into_iter().find(|value| value.name() == word).ok_or_else(|| {
                    let words = Self::ALL.map(Self::name).join(", ");
                    $crate::field::FieldError::new($field, format!("`{word}` is not one of {words}"))
                })
            }
        }
    };
}

pub(crate) use words;
