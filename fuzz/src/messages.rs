//! Messages, from their bytes to the domain and back.
//!
//! A new kind of message is a target of two lines here, and one in the table.

#[path = "../../proto/tests/support/arbitrary.rs"]
#[allow(dead_code, reason = "the tests of the conversions use all of it")]
#[allow(clippy::unwrap_used, reason = "values made to fit")]
mod arbitrary;

use std::fmt::Debug;

use hatchery_common::{
    field::FieldError,
    session::{AgentMessage, CoordinatorMessage},
};
use hatchery_proto::v1;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use prost::Message;

/// How many messages of a kind there are to begin with.
const SEEDS: usize = 40;

/// What an agent says in a session.
pub(crate) fn from_agent(bytes: &[u8]) -> bool {
    round_trip::<AgentMessage, v1::SessionRequest>(bytes)
}

pub(crate) fn of_agents() -> Vec<Vec<u8>> {
    messages::<_, v1::SessionRequest>(arbitrary::agent_message())
}

/// What the coordinator says in a session.
pub(crate) fn from_coordinator(bytes: &[u8]) -> bool {
    round_trip::<CoordinatorMessage, v1::SessionResponse>(bytes)
}

pub(crate) fn of_coordinators() -> Vec<Vec<u8>> {
    messages::<_, v1::SessionResponse>(arbitrary::coordinator_message())
}

/// What the domain has read it writes so that it reads the same again, in the same bytes each time.
fn round_trip<Domain, Wire>(bytes: &[u8]) -> bool
where
    Domain: TryFrom<Wire, Error = FieldError> + PartialEq + Debug,
    Wire: From<Domain> + Message + Default,
{
    let Ok(message) = Wire::decode(bytes) else { return false };
    let Ok(domain) = Domain::try_from(message) else { return false };
    let written = Wire::from(domain).encode_to_vec();
    let read = || Wire::decode(written.as_slice()).map(Domain::try_from);
    let (Ok(Ok(one)), Ok(Ok(other))) = (read(), read()) else { panic!("what was written is not read again") };
    assert_eq!(one, other);
    assert_eq!(Wire::from(one).encode_to_vec(), written);
    true
}

fn messages<Domain: Debug, Wire: From<Domain> + Message>(any: impl Strategy<Value = Domain>) -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let mut draw = || any.new_tree(&mut runner).expect("these strategies reject nothing").current();
    (0..SEEDS).map(|_| Wire::from(draw()).encode_to_vec()).collect()
}
