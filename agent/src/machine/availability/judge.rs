//! Owner's policy, what is seen, what was thought before -> available or away. Pure.
//!
//! A node that flaps costs a checkpoint and a start each time. Hours and the owner's hands are steady by themselves: hours
//! are long, and nobody has been idle for a minute twice in a minute. Power and load are not, so these must have lasted.

use std::time::Duration;

use hatchery_common::{
    availability::{Away, AwayReason, LocalTime},
    field::{FieldError, check_range},
    time::{BootTime, Timestamp},
};
use jiff::ZonedDateTime;
use serde::{Deserialize, Serialize};

use super::{Hours, Usage};

/// Bounds of `load_max`.
const LOAD_MIN: f64 = 0.01;
const LOAD_MAX: f64 = 1.0;
/// Bounds of `owner_idle_secs_min`: terminals note a key to within eight seconds.
const OWNER_IDLE_SECS_MIN: u32 = 10;
const OWNER_IDLE_SECS_MAX: u32 = 24 * 3600;

/// For so long others must need the processor before the node is away: what starts up is over by then.
const BUSY_FOR: Duration = Duration::from_secs(5);
/// And for so long need less than this part of what they may before it is back.
const CALM_FOR: Duration = Duration::from_secs(30);
/// See [`CALM_FOR`].
const CALM_SHARE: f64 = 0.8;
/// For so long it must have had mains power before it is back.
const MAINS_FOR: Duration = Duration::from_secs(10);

/// When this machine may train. All conditions must hold; without any: always.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AvailabilitySettings {
    /// Hours of the week for training, in local time: `mon-fri 19:00-07:00, sat-sun`. Empty: always.
    pub hours: Hours,
    /// Whether to train only on mains power.
    pub mains_power_only: bool,
    /// Largest share of all cores that other programs may use while the machine trains, 0.01 to 1; trainers do not
    /// count. Unset: no limit.
    pub load_max: Option<f64>,
    /// Seconds without keyboard or mouse input before the machine trains, at least 10. Unset: no limit.
    pub owner_idle_secs_min: Option<u32>,
}

impl AvailabilitySettings {
    /// Checks every key; the error names the first wrong one.
    pub fn check(&self) -> Result<(), FieldError> {
        if let Some(load) = self.load_max {
            check_range("load_max", load, LOAD_MIN, LOAD_MAX)?;
        }
        if let Some(secs) = self.owner_idle_secs_min {
            check_range("owner_idle_secs_min", secs, OWNER_IDLE_SECS_MIN, OWNER_IDLE_SECS_MAX)?;
        }
        Ok(())
    }

    /// Whether it can ever be away.
    pub fn limits(&self) -> bool {
        self.looks() || !self.hours.are_always()
    }

    /// Whether the machine has to be looked at for it, beside its clock.
    pub fn looks(&self) -> bool {
        self.mains_power_only || self.load_max.is_some() || self.owner_idle_secs_min.is_some()
    }
}

/// What is thought of the machine, and what has to be remembered for the next look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Judgement {
    /// Why its devices are its owner's; none: they are the fleet's.
    pub away: Option<Away>,
    battery: Lasting,
    load: Lasting,
}

/// Something that counts only once it has lasted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lasting {
    holds: bool,
    /// Since when it has been otherwise than `holds` says.
    otherwise_since: Option<BootTime>,
}

impl Lasting {
    /// `seen` is none where neither is clear: then it stays as it is.
    fn next(self, seen: Option<bool>, to_hold: Duration, to_end: Duration, now: BootTime) -> Self {
        if seen.is_none_or(|seen| seen == self.holds) {
            return Self { otherwise_since: None, ..self };
        }
        let since = self.otherwise_since.unwrap_or(now);
        let patience = if self.holds { to_end } else { to_hold };
        if now.since(since) >= patience {
            Self { holds: !self.holds, otherwise_since: None }
        } else {
            Self { otherwise_since: Some(since), ..self }
        }
    }
}

impl Judgement {
    /// What is thought after another look. What cannot be seen does not count against the machine.
    #[must_use]
    pub fn next(
        self,
        policy: &AvailabilitySettings,
        seen: &Usage,
        local: &ZonedDateTime,
        now: BootTime,
    ) -> Self {
        let on_battery = policy.mains_power_only && seen.on_battery == Some(true);
        let battery = self.battery.next(Some(on_battery), Duration::ZERO, MAINS_FOR, now);
        let busy = match (policy.load_max, seen.others_load) {
            (Some(most), Some(load)) if load > most => Some(true),
            (Some(most), Some(load)) if load > most * CALM_SHARE => None,
            _ => Some(false),
        };
        let load = self.load.next(busy, BUSY_FOR, CALM_FOR, now);
        let owner = policy.owner_idle_secs_min.zip(seen.owner_idle);
        let owner_active =
            owner.is_some_and(|(secs_min, idle)| idle < Duration::from_secs(u64::from(secs_min)));
        let away = |reason| Some(Away { reason, until: None });
        let away = if !policy.hours.contain(local.datetime()) {
            let until = policy.hours.next_start(local).map(|start| local_time(&start));
            Some(Away { reason: AwayReason::OutsideHours, until })
        } else if owner_active {
            away(AwayReason::OwnerActive)
        } else if battery.holds {
            away(AwayReason::OnBattery)
        } else if load.holds {
            away(AwayReason::OthersBusy)
        } else {
            None
        };
        Self { away, battery, load }
    }
}

fn local_time(time: &ZonedDateTime) -> LocalTime {
    let at = Timestamp(u64::try_from(time.timestamp().as_millisecond()).unwrap_or(0));
    LocalTime { at, utc_offset_secs: time.offset().seconds() }
}

#[cfg(test)]
mod tests {
    use jiff::{ToSpan, civil::date, tz::TimeZone};
    use proptest::prelude::*;

    use super::*;

    fn monday_noon() -> ZonedDateTime {
        date(2024, 2, 26)
            .at(12, 0, 0, 0)
            .to_zoned_datetime(TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap())
            .unwrap()
    }

    /// What is thought at each second, from what is seen at each.
    fn thought(policy: &AvailabilitySettings, seen: &[Usage]) -> Vec<Option<AwayReason>> {
        let (mut judgement, start) = (Judgement::default(), monday_noon());
        let each = seen.iter().zip(0i64..).map(|(seen, second)| {
            let local = start.checked_add(second.seconds()).unwrap();
            judgement = judgement.next(policy, seen, &local, BootTime(second as u64 * 1000));
            judgement.away.map(|away| away.reason)
        });
        each.collect()
    }

    fn load(share: f64) -> Usage {
        Usage { others_load: Some(share), ..Usage::default() }
    }

    #[test]
    fn outside_its_hours_it_is_away_until_they_begin() {
        let policy =
            AvailabilitySettings { hours: "mon-fri 19:00-07:00".parse().unwrap(), ..Default::default() };
        let away = Judgement::default().next(&policy, &Usage::default(), &monday_noon(), BootTime(0)).away;
        let said = away.unwrap().to_string();
        assert_eq!(said, "outside its hours, until Mon 19:00 (UTC+01:00)");
        let evening = monday_noon().checked_add(7.hours()).unwrap();
        assert_eq!(Judgement::default().next(&policy, &Usage::default(), &evening, BootTime(0)).away, None);
    }

    #[test]
    fn the_owners_hands_count_at_once_and_for_as_long_as_was_said() {
        let policy = AvailabilitySettings { owner_idle_secs_min: Some(60), ..Default::default() };
        let idle = |secs| Usage { owner_idle: Some(Duration::from_secs(secs)), ..Usage::default() };
        let active = Some(AwayReason::OwnerActive);
        assert_eq!(
            thought(&policy, &[idle(60), idle(0), idle(59), idle(60), Usage::default(), idle(5)]),
            [None, active, active, None, None, active]
        );
    }

    #[test]
    fn a_battery_counts_at_once_and_mains_once_they_last() {
        let policy = AvailabilitySettings { mains_power_only: true, ..Default::default() };
        let power = |on_battery| Usage { on_battery, ..Usage::default() };
        let mut seen = vec![power(Some(false)), power(Some(true)), power(Some(false)), power(Some(true))];
        seen.extend(vec![power(Some(false)); 12]);
        let thought = thought(&policy, &seen);
        let away = thought.iter().filter(|away| **away == Some(AwayReason::OnBattery)).count();
        assert_eq!(
            (thought[0], thought[1], away, thought[15]),
            (None, Some(AwayReason::OnBattery), 13, None)
        );
    }

    #[test]
    fn a_load_counts_once_it_lasts_and_so_does_calm() {
        let policy = AvailabilitySettings { load_max: Some(0.5), ..Default::default() };
        let seen = |parts: &[(f64, usize)]| -> Vec<Usage> {
            parts.iter().flat_map(|(share, secs)| vec![load(*share); *secs]).collect()
        };
        let busy = Some(AwayReason::OthersBusy);
        let bursts = seen(&[(0.1, 3), (0.9, 5), (0.1, 1), (0.9, 5), (0.45, 9), (0.5, 20)]);
        assert!(thought(&policy, &bursts).iter().all(Option::is_none), "bursts are nothing");
        let steady = thought(&policy, &seen(&[(0.9, 7), (0.45, 60), (0.3, 20), (0.6, 1), (0.3, 31)]));
        assert_eq!((steady[4], steady[5]), (None, busy));
        assert!(steady[5..118].iter().all(|away| *away == busy), "almost calm is not calm: {steady:?}");
        assert_eq!(steady[118], None);
    }

    #[test]
    fn wrong_values_name_the_key() {
        assert_eq!(AvailabilitySettings::default().check(), Ok(()));
        assert!(!AvailabilitySettings::default().limits());
        for (wrong, field) in [
            (AvailabilitySettings { load_max: Some(f64::NAN), ..Default::default() }, "load_max"),
            (AvailabilitySettings { load_max: Some(50.0), ..Default::default() }, "load_max"),
            (
                AvailabilitySettings { owner_idle_secs_min: Some(1), ..Default::default() },
                "owner_idle_secs_min",
            ),
        ] {
            assert_eq!(wrong.check().unwrap_err().field, field);
        }
    }

    fn usage() -> impl Strategy<Value = Usage> {
        let idle = prop::option::of((0..200u64).prop_map(Duration::from_secs));
        (prop::option::of(any::<bool>()), prop::option::of(0.0..1.0), idle).prop_map(
            |(on_battery, others_load, owner_idle)| Usage {
                on_battery,
                others_load,
                owner_idle,
                problems: vec![],
            },
        )
    }

    proptest! {
        /// Whatever is seen in whichever order, what came and went with the load lasted.
        #[test]
        fn a_machine_does_not_flap(seen in prop::collection::vec(usage(), 1..300)) {
            let policy = AvailabilitySettings { load_max: Some(0.5), mains_power_only: true, ..Default::default() };
            let thought = thought(&policy, &seen);
            for second in 1..thought.len() {
                if thought[second] == thought[second - 1] {
                    continue;
                }
                match thought[second - 1] {
                    Some(AwayReason::OthersBusy) if thought[second].is_none() => {
                        let calm = &seen[second - CALM_FOR.as_secs() as usize..second];
                        prop_assert!(calm.iter().all(|seen| seen.others_load.is_none_or(|load| load <= 0.5)));
                    }
                    Some(AwayReason::OnBattery) if thought[second].is_none() => {
                        let mains = &seen[second - MAINS_FOR.as_secs() as usize..second];
                        prop_assert!(mains.iter().all(|seen| seen.on_battery != Some(true)));
                    }
                    _ => {}
                }
            }
        }

        /// The owner and the battery count at once; what cannot be seen, and what nobody asked for, never counts.
        #[test]
        fn it_is_away_only_for_a_reason(seen in prop::collection::vec(usage(), 1..60), secs_min in 10..120u32) {
            let owner = AvailabilitySettings { owner_idle_secs_min: Some(secs_min), ..Default::default() };
            for (away, seen) in thought(&owner, &seen).into_iter().zip(&seen) {
                let active = seen.owner_idle.is_some_and(|idle| idle < Duration::from_secs(u64::from(secs_min)));
                prop_assert_eq!(away, active.then_some(AwayReason::OwnerActive));
            }
            let power = AvailabilitySettings { mains_power_only: true, ..Default::default() };
            for (away, seen) in thought(&power, &seen).into_iter().zip(&seen) {
                prop_assert!(seen.on_battery != Some(true) || away == Some(AwayReason::OnBattery));
            }
            prop_assert!(thought(&AvailabilitySettings::default(), &seen).iter().all(Option::is_none));
            let blind = vec![Usage::default(); seen.len()];
            let all = AvailabilitySettings { load_max: Some(0.01), mains_power_only: true, ..owner };
            prop_assert!(thought(&all, &blind).iter().all(Option::is_none));
        }
    }
}
