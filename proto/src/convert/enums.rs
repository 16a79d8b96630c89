//! Enumerations. The wire has them as numbers, of which a newer peer may know more.

use hatchery_common::{
    access::Scope,
    field::FieldError,
    generate::FinishReason,
    trainer::{FailureCause, Slowdown},
};

/// An enumeration with a number for each value on the wire; 0 stands for none of them.
pub(super) trait Enumeration: Sized {
    fn of_number(number: i32) -> Option<Self>;
    fn number(self) -> i32;

    /// Reads the number; the error names it.
    fn read(field: &str, number: i32) -> Result<Self, FieldError> {
        Self::of_number(number).ok_or_else(|| match number {
            0 => FieldError::new(field, "is missing"),
            _ => FieldError::new(field, format!("has the value {number}, unknown to this version")),
        })
    }
}

macro_rules! enumeration {
    ($domain:ident: $($value:ident),+) => {
        impl Enumeration for $domain {
            fn of_number(number: i32) -> Option<Self> {
                $(if number == wire::$domain::$value as i32 {
                    return Some(Self::$value);
                })+
                None
            }

            fn number(self) -> i32 {
                match self {
                    $(Self::$value => wire::$domain::$value as i32,)+
                }
            }
        }
    };
}

mod wire {
    pub(super) use crate::v1::{FailureCause, FinishReason, Scope, Slowdown};
}

enumeration!(FailureCause: Crashed, OutOfMemory, BadInput, NotANumber, Unavailable, Storage, Outdated);
enumeration!(Slowdown: Heat, PowerLimit, PowerSupply, Protection);
enumeration!(FinishReason: MaxBytes, StopString);
enumeration!(Scope: Agent, Operator, Viewer);

/// Reads a scope out of a request's field `scope`.
pub fn scope(number: i32) -> Result<Scope, FieldError> {
    Scope::read("scope", number)
}

/// A scope as requests have it.
pub fn scope_number(scope: Scope) -> i32 {
    scope.number()
}
