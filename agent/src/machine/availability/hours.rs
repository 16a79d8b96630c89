//! The hours of a week, as a person writes them: `mon-fri 19:00-07:00, sat-sun`.

use std::{fmt, str::FromStr};

use jiff::{ToSpan, ZonedDateTime, civil::DateTime};
use serde::{Deserialize, Serialize};

const DAY_MINUTES: u16 = 24 * 60;
const WEEK_MINUTES: u16 = 7 * DAY_MINUTES;
/// Most parts between commas.
const PARTS_MAX: usize = 64;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const ALWAYS: &str = "always";

/// Hours that come again each week, by the clock on the machine's wall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Hours {
    /// As it was written.
    text: String,
    spans: Vec<Span>,
}

/// So many minutes of each week; over its end it goes on at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// Minutes since Monday's start, below a week's.
    start: u16,
    /// From 1 to a day's.
    length: u16,
}

impl Span {
    fn contains(self, minute: u16) -> bool {
        (minute + WEEK_MINUTES - self.start) % WEEK_MINUTES < self.length
    }
}

impl Default for Hours {
    fn default() -> Self {
        let day = |day: u16| Span { start: day * DAY_MINUTES, length: DAY_MINUTES };
        Self { text: ALWAYS.to_owned(), spans: (0..7).map(day).collect() }
    }
}

impl Hours {
    /// Whether a time lies within them.
    pub fn contain(&self, time: DateTime) -> bool {
        let minute = minute_of_week(time);
        self.spans.iter().any(|span| span.contains(minute))
    }

    /// Whether there is no time outside of them.
    pub fn are_always(&self) -> bool {
        (0..WEEK_MINUTES).all(|minute| self.spans.iter().any(|span| span.contains(minute)))
    }

    /// When they begin next, after a time outside of them. A clock that is put forward over the beginning, or back to
    /// before it, is taken into account.
    pub fn next_start(&self, after: &ZonedDateTime) -> Option<ZonedDateTime> {
        let minute = minute_of_week(after.datetime());
        let today = after.date();
        let starts = self.spans.iter().filter_map(|span| {
            let days = (span.start / DAY_MINUTES + 7 - minute / DAY_MINUTES) % 7;
            // Seven days on it comes again: of today's starts some are over.
            let times = [days, days + 7].into_iter().filter_map(|days| {
                let date = today.checked_add(i64::from(days).days()).ok()?;
                let (hour, minute) = (span.start % DAY_MINUTES / 60, span.start % 60);
                date.at(hour as i8, minute as i8, 0, 0).to_zoned_datetime(after.time_zone().clone()).ok()
            });
            times.filter(|time| time.timestamp() > after.timestamp()).min_by_key(ZonedDateTime::timestamp)
        });
        starts.min_by_key(ZonedDateTime::timestamp)
    }
}

fn minute_of_week(time: DateTime) -> u16 {
    let day = time.date().weekday().to_monday_zero_offset() as u16;
    day * DAY_MINUTES + time.hour() as u16 * 60 + time.minute() as u16
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Hours> for String {
    fn from(hours: Hours) -> Self {
        hours.text
    }
}

/// What is wrong with hours as they were written, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; write `always` or hours in local time such as `mon-fri 19:00-07:00, sat-sun`")]
pub struct HoursError {
    problem: String,
}

fn wrong(problem: impl Into<String>) -> HoursError {
    HoursError { problem: problem.into() }
}

impl TryFrom<String> for Hours {
    type Error = HoursError;

    fn try_from(text: String) -> Result<Self, HoursError> {
        text.parse()
    }
}

impl FromStr for Hours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let text = text.trim().to_ascii_lowercase();
        if text == ALWAYS {
            return Ok(Self::default());
        }
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        if parts.len() > PARTS_MAX {
            return Err(wrong(format!("{} parts, more than the limit of {PARTS_MAX}", parts.len())));
        }
        let mut spans = Vec::new();
        for part in parts {
            spans.extend(part_spans(part)?);
        }
        Ok(Self { text, spans })
    }
}

/// `mon-fri 19:00-07:00`, or days alone, or times alone, which are of each day.
fn part_spans(part: &str) -> Result<Vec<Span>, HoursError> {
    let words: Vec<&str> = part.split_whitespace().collect();
    let is_time = |word: &str| word.starts_with(|first: char| first.is_ascii_digit());
    let (days, (start, length)) = match words[..] {
        [] => return Err(wrong("a comma has nothing before or after it")),
        [times] if is_time(times) => ((0..7).collect(), times_of(times)?),
        [days] => (days_of(days)?, (0, DAY_MINUTES)),
        [days, times] => (days_of(days)?, times_of(times)?),
        [..] => return Err(wrong(format!("`{part}` must be days, times, or days and times"))),
    };
    Ok(days.into_iter().map(|day| Span { start: day * DAY_MINUTES + start, length }).collect())
}

/// `fri`, or `fri-mon`, both included.
fn days_of(word: &str) -> Result<Vec<u16>, HoursError> {
    let day = |name: &str| {
        let found = DAYS.iter().position(|day| *day == name);
        found
            .map(|day| day as u16)
            .ok_or_else(|| wrong(format!("`{name}` is not one of {}", DAYS.join(", "))))
    };
    match word.split_once('-') {
        None => Ok(vec![day(word)?]),
        Some((first, last)) => {
            let (first, last) = (day(first)?, day(last)?);
            Ok((0..=(last + 7 - first) % 7).map(|next| (first + next) % 7).collect())
        }
    }
}

/// `19:00-07:00`: when it begins and for how long, in minutes. An end that is not after the beginning is the next day's.
fn times_of(word: &str) -> Result<(u16, u16), HoursError> {
    let (start, end) = word.split_once('-').ok_or_else(|| wrong(format!("`{word}` is not a time range")))?;
    let (start, end) = (time_of(start)?, time_of(end)?);
    if start == DAY_MINUTES {
        return Err(wrong(format!("`{word}` starts at the end of a day; write 00:00 and the next day")));
    }
    if start == end {
        return Err(wrong(format!("`{word}` has no length; for a whole day, leave out the times")));
    }
    Ok((start, if end > start { end - start } else { end + DAY_MINUTES - start }))
}

fn time_of(word: &str) -> Result<u16, HoursError> {
    let number = |digits: &str, high: u16| {
        let plain = digits.len() <= 2 && digits.bytes().all(|digit| digit.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|number| plain && *number <= high)
    };
    let parts =
        word.split_once(':').and_then(|(hour, minute)| Some((number(hour, 24)?, number(minute, 59)?)));
    match parts {
        Some((hour, minute)) if hour < 24 || minute == 0 => Ok(hour * 60 + minute),
        _ => Err(wrong(format!("`{word}` is not a time from 00:00 to 24:00"))),
    }
}

#[cfg(test)]
mod tests {
    use jiff::{civil::date, tz::TimeZone};
    use proptest::prelude::*;

    use super::*;

    fn hours(text: &str) -> Hours {
        text.parse().unwrap()
    }

    /// A time of the week that begins on Monday, 2024-02-26.
    fn at(day: i8, hour: i8, minute: i8) -> DateTime {
        date(2024, 2, 26).at(hour, minute, 0, 0).checked_add(i64::from(day).days()).unwrap()
    }

    #[test]
    fn hours_run_over_midnight_and_over_the_weeks_end() {
        let evenings = hours("Mon-Fri 19:00-07:00, sat-sun");
        assert!(!evenings.contain(at(0, 6, 59)), "Sunday is over at midnight");
        for (time, within) in [
            (at(0, 18, 59), false),
            (at(0, 19, 0), true),
            (at(1, 6, 59), true),
            (at(1, 7, 0), false),
            (at(4, 23, 0), true),
            (at(5, 12, 0), true),
            (at(6, 23, 59), true),
        ] {
            assert_eq!(evenings.contain(time), within, "{time}");
        }
        assert!(hours("sun 22:00-06:00").contain(at(0, 5, 59)));
        let weekend = hours("fri-mon 12:00-24:00");
        assert!(
            weekend.contain(at(0, 12, 0)) && weekend.contain(at(4, 23, 59)) && !weekend.contain(at(1, 13, 0))
        );
        assert!(hours("08:00-08:30").contain(at(3, 8, 29)));
        assert!(hours("always").are_always() && hours("00:00-12:00, 12:00-24:00").are_always());
        assert!(!evenings.are_always());
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (text, problem) in [
            ("", "a comma has nothing before or after it"),
            ("mon,", "a comma has nothing before or after it"),
            ("mon-fry 8:00-9:00", "`fry` is not one of mon, tue, wed, thu, fri, sat, sun"),
            ("mon 8-9", "`8` is not a time from 00:00 to 24:00"),
            ("mon 8:00", "`8:00` is not a time range"),
            ("24:30-08:00", "`24:30` is not a time from 00:00 to 24:00"),
            ("08:00-+9:00", "`+9:00` is not a time from 00:00 to 24:00"),
            ("24:00-08:00", "`24:00-08:00` starts at the end of a day; write 00:00 and the next day"),
            ("08:00-08:00", "`08:00-08:00` has no length; for a whole day, leave out the times"),
            (
                "mon 8:00-9:00 10:00-11:00",
                "`mon 8:00-9:00 10:00-11:00` must be days, times, or days and times",
            ),
        ] {
            let error = text.parse::<Hours>().unwrap_err();
            assert_eq!(error, wrong(problem), "{text}");
            assert!(error.to_string().contains("mon-fri 19:00-07:00, sat-sun"), "{error}");
        }
    }

    #[test]
    fn they_begin_again_by_the_clock_on_the_wall() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let next = |hours: &Hours, time: DateTime| {
            hours.next_start(&time.to_zoned_datetime(zone.clone()).unwrap()).map(|start| start.datetime())
        };
        let evenings = hours("mon-fri 19:00-07:00, sat-sun");
        assert_eq!(next(&evenings, at(0, 7, 0)), Some(at(0, 19, 0)));
        assert_eq!(next(&evenings, at(4, 7, 30)), Some(at(4, 19, 0)));
        assert_eq!(next(&hours("mon 19:00-20:00"), at(0, 20, 0)), Some(at(7, 19, 0)));
        assert_eq!(next(&hours("sun"), at(0, 0, 0)), Some(at(6, 0, 0)));
        // The night in which clocks are put forward from 2:00 to 3:00.
        let skipped = next(&hours("02:30-05:00"), date(2024, 3, 31).at(0, 0, 0, 0));
        assert_eq!(skipped, Some(date(2024, 3, 31).at(3, 30, 0, 0)));
    }

    fn part() -> impl Strategy<Value = String> {
        let days = (0..7usize, 0..7usize, any::<bool>()).prop_map(|(first, last, one)| {
            if one { DAYS[first].to_owned() } else { format!("{}-{}", DAYS[first], DAYS[last]) }
        });
        let times = (0..1440u16, 1..1440u16).prop_map(|(start, length)| {
            let end = (start + length) % DAY_MINUTES;
            format!("{:02}:{:02}-{:02}:{:02}", start / 60, start % 60, end / 60, end % 60)
        });
        prop_oneof![
            days.clone(),
            times.clone(),
            (days, times).prop_map(|(days, times)| format!("{days} {times}")),
        ]
    }

    proptest! {
        #[test]
        fn they_begin_where_the_time_outside_ends(
            text in prop::collection::vec(part(), 1..4).prop_map(|parts| parts.join(", ")),
            minute in 0..i64::from(WEEK_MINUTES),
        ) {
            let hours = hours(&text);
            prop_assert_eq!(&hours.to_string().parse::<Hours>().unwrap(), &hours);
            let json = serde_json::to_string(&hours).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Hours>(&json).unwrap(), &hours);
            let now = at(0, 0, 0).checked_add(minute.minutes()).unwrap().to_zoned_datetime(TimeZone::UTC).unwrap();
            if !hours.contain(now.datetime()) {
                let start = hours.next_start(&now).unwrap();
                prop_assert!(hours.contain(start.datetime()), "{} at {}", text, start);
                let mut time = now.clone();
                while time < start {
                    prop_assert!(!hours.contain(time.datetime()), "{} at {}", text, time);
                    time = time.checked_add(7.minutes()).unwrap();
                }
                let before = start.checked_sub(1.minute()).unwrap();
                prop_assert!(!hours.contain(before.datetime()), "{} at {}", text, before);
            }
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,40}") {
            drop(text.parse::<Hours>());
        }
    }
}
