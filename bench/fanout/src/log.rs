//! What Hatchery's log lines say: `agent 2026-11-26T13:01:12.123456Z  INFO module: checkpoint fetched checkpoint=... `.

/// When the line with all these words was written, in seconds since 1970; none: there is no such line.
pub(super) fn time_of(log: &str, words: &[&str]) -> Option<f64> {
    // A line without its end may be half a line.
    let whole = &log[..=log.rfind('\n')?];
    let line = whole.lines().find(|line| words.iter().all(|word| line.contains(word)))?;
    time(line.split_whitespace().nth(1)?)
}

/// How many lines have all these words.
pub(super) fn count(log: &str, words: &[&str]) -> usize {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// `2026-11-26T13:01:12.123456Z` in seconds since 1970.
fn time(text: &str) -> Option<f64> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut clock = clock.splitn(3, ':');
    let (hours, minutes) = (clock.next()?.parse::<i64>().ok()?, clock.next()?.parse::<i64>().ok()?);
    let seconds: f64 = clock.next()?.parse().ok()?;
    // Days since 1970: years begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((days * 86_400 + hours * 3_600 + minutes * 60) as f64 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_since_1970() {
        assert_eq!(time("1970-01-01T00:00:00Z"), Some(0.0));
        assert_eq!(time("2026-11-26T13:01:12.25Z"), Some(1_795_698_072.25));
        assert_eq!(time("2024-02-29T23:59:59Z"), Some(1_709_251_199.0));
        assert_eq!(time("2026-11-26"), None);
    }

    #[test]
    fn a_line_is_found_by_its_words_once_it_is_whole() {
        let log = "agent 1970-01-01T00:00:01.000000Z  INFO x: checkpoint fetched checkpoint=aa bytes=1\n\
                   agent 1970-01-01T00:00:02.500000Z  INFO x: checkpoint fetched checkpoint=bb bytes=1\n\
                   agent 1970-01-01T00:00:03.000000Z  INFO x: checkpoint fetched checkpoint=cc";
        assert_eq!(time_of(log, &["checkpoint fetched", "checkpoint=bb"]), Some(2.5));
        assert_eq!(time_of(log, &["checkpoint fetched", "checkpoint=cc"]), None);
        assert_eq!(time_of("", &["checkpoint"]), None);
        assert_eq!(count(log, &["fetched"]), 3);
    }
}
