//! How much of everything there may be.

use std::time::Duration;

/// Most asks that a child has open at one parent, what is being sent to it aside.
pub const ASKS_PER_CHILD_MAX: usize = 32;
/// Most asks that a child has open at one parent by itself.
pub const ASKS_OPEN_MAX: usize = 8;
/// So much of what a parent sends is asked for beyond what is on its way, so that it need not wait for the next ask.
pub const ASKS_AHEAD: Duration = Duration::from_millis(10);

/// Most parents of a receiver.
pub const PARENTS_MAX: usize = 6;
/// How many more a receiver may have that is behind the others.
pub const PARENTS_MORE: usize = 2;
/// A receiver with fewer parents is given some of others', since each such move breaks off what was on its way.
pub const PARENTS_FEW: usize = 4;
/// So many parents are enough for one that serves nobody, if there would only be the source beside them.
pub const PARENTS_ENOUGH: usize = 2;
/// Most children of a node whose uplink is like the others'.
pub const CHILDREN_TYPICAL: usize = 6;
/// Most children of any node.
pub const CHILDREN_MAX: usize = 64;

/// Times the expected time of a piece after which a silent parent counts as stalled.
pub const STALL_FACTOR: f64 = 3.0;
/// Times the typical time of a piece after which a parent counts as slow.
pub const SLOW_FACTOR: f64 = 2.0;
/// A parent is not called stalled sooner than this.
pub const STALL_MIN: Duration = Duration::from_millis(250);
/// How long a parent may be silent that has not sent anything yet, where no other parent has either.
pub const STALL_UNKNOWN: Duration = Duration::from_secs(30);
/// Where others have: so many times the time that they take for a piece, but not less than [`STALL_UNKNOWN_MIN`].
pub const STALL_FACTOR_UNKNOWN: f64 = 20.0;
/// See [`STALL_FACTOR_UNKNOWN`].
pub const STALL_UNKNOWN_MIN: Duration = Duration::from_secs(2);
/// A stalled parent is asked again after this; the time doubles each time, up to [`REST_MAX`].
pub const REST_MIN: Duration = Duration::from_secs(1);
/// See [`REST_MIN`].
pub const REST_MAX: Duration = Duration::from_secs(30);
/// A receiver whose parents have had nothing for it for so long asks for other parents.
pub const STARVED_AFTER: Duration = Duration::from_secs(1);

/// Upload slots of a node that has a slow uplink and the whole blob, or where nobody has the whole blob; else it has none.
pub const CHILDREN_MIN: usize = 4;
/// Parents that stalled and that a receiver is not given again until so many others have.
pub const AVOIDED_MAX: usize = 8;
/// Most nodes that a receiver says it was sent wrong bytes by, of one blob.
pub const BANNED_MAX: usize = 64;
/// So many receivers that were sent wrong bytes by a node make it nobody's parent.
pub const BARRED_BY: usize = 2;
/// Most receivers that are remembered to have said so of one node.
pub const SUSPECTS_TOLD_MAX: usize = 16;
/// In a swarm of so many members all of them are looked at when a parent is looked for.
pub const LOOKED_AT_MAX: usize = 24;
/// In a larger one so many are drawn.
pub const DRAWN: usize = 8;
/// Receivers that want more parents and are looked after on one occasion.
pub const HUNGRY_SERVED_MAX: usize = 16;
/// After so many of them for whom there is none, the others wait for the next occasion.
pub const HUNGRY_IN_VAIN_MAX: usize = 2;
