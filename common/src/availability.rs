//! Whether a node gives its devices to the fleet just now, or its owner has them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{time::Timestamp, words::words};

/// A node's devices belong to its owner for now: nothing is to run on them. The node holds checkpoints and answers all
/// the same. Prints as half a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    /// Why.
    pub reason: AwayReason,
    /// When it will be back, where that is known.
    pub until: Option<LocalTime>,
}

/// Why a node is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AwayReason {
    /// It is outside the hours that its owner gives.
    OutsideHours,
    /// Its owner is using it.
    OwnerActive,
    /// It runs on its battery.
    OnBattery,
    /// Other programs need its processor.
    OthersBusy,
}

words!(AwayReason, "reason":
    OutsideHours = "outside_hours",
    OwnerActive = "owner_active",
    OnBattery = "on_battery",
    OthersBusy = "others_busy",
);

impl fmt::Display for AwayReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutsideHours => "outside its hours",
            Self::OwnerActive => "its owner is using it",
            Self::OnBattery => "on battery power",
            Self::OthersBusy => "other programs need it",
        })
    }
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        self.until.map_or(Ok(()), |until| write!(f, ", until {until}"))
    }
}

/// An instant as the clock on a machine's wall shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalTime {
    /// The instant.
    pub at: Timestamp,
    /// How far the machine's clock is ahead of UTC then, in seconds.
    pub utc_offset_secs: i32,
}

impl fmt::Display for LocalTime {
    /// `Mon 19:00 (UTC+01:00)`: within a week there is one such time only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        const DAY_MINUTES: i64 = 24 * 60;
        let minutes = ((self.at.0 / 1000) as i64 + i64::from(self.utc_offset_secs)).div_euclid(60);
        // The day that timestamps count from was a Thursday.
        let day = (minutes.div_euclid(DAY_MINUTES) + 3).rem_euclid(7) as usize;
        let minute = minutes.rem_euclid(DAY_MINUTES);
        write!(f, "{} {:02}:{:02} (UTC", DAYS[day], minute / 60, minute % 60)?;
        let offset_mins = self.utc_offset_secs.unsigned_abs() / 60;
        match self.utc_offset_secs {
            0 => f.write_str(")"),
            secs => {
                let sign = if secs < 0 { '-' } else { '+' };
                write!(f, "{sign}{:02}:{:02})", offset_mins / 60, offset_mins % 60)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_reads_as_half_a_sentence() {
        // 2024-02-29, a Thursday, 12:34:56 UTC.
        let at = Timestamp(1_709_210_096_000);
        let words = |reason, until: Option<i32>| {
            let until = until.map(|utc_offset_secs| LocalTime { at, utc_offset_secs });
            Away { reason, until }.to_string()
        };
        assert_eq!(words(AwayReason::OwnerActive, None), "its owner is using it");
        let outside = |offset| words(AwayReason::OutsideHours, Some(offset));
        assert_eq!(outside(0), "outside its hours, until Thu 12:34 (UTC)");
        assert_eq!(outside(12 * 3600), "outside its hours, until Fri 00:34 (UTC+12:00)");
        assert_eq!(outside(-(12 * 3600 + 45 * 60)), "outside its hours, until Wed 23:49 (UTC-12:45)");
        let first = LocalTime { at: Timestamp(0), utc_offset_secs: i32::MIN };
        assert!(!first.to_string().is_empty());
    }

    #[test]
    fn reasons_are_read_back() {
        for reason in AwayReason::ALL {
            assert_eq!(reason.name().parse::<AwayReason>(), Ok(reason));
        }
        let problem = "bored".parse::<AwayReason>().unwrap_err().problem;
        assert_eq!(problem, "`bored` is not one of outside_hours, owner_active, on_battery, others_busy");
    }
}
