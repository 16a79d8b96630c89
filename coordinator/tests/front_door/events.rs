//! The fleet's history: numbered without gaps, resumable from any number, also across a restart.

use futures::StreamExt as _;
use hatchery_common::{id::RequestId, view::EventView};

use crate::fixture::{Fixture, soon, soon_failed, soon_when};

#[tokio::test(flavor = "multi_thread")]
async fn events_resume_from_a_number_across_a_restart() {
    let mut fixture = Fixture::start().await;
    let job = fixture.submit().await;
    let fleet = fixture.fleet().await;
    let all: Vec<EventView> =
        soon(soon(fleet.events(0, false, None)).await.unwrap().map(Result::unwrap).collect()).await;
    assert!(all.iter().map(|event| event.number).eq(1..=all.len() as u64));
    let last = all.last().unwrap();
    assert_eq!((last.kind.as_str(), last.job), ("job_submitted", Some(job.id)));
    assert!(last.text.ends_with("submitted demo"), "{}", last.text);
    assert_eq!(last.change["change"], "job_submitted");

    let mut followed = soon(fleet.events(last.number - 1, true, None)).await.unwrap();
    assert_eq!(&soon_when(&mut followed, |_| true).await, last);
    let second = soon(fleet.submit(RequestId::random(), &job.spec)).await.unwrap().0;
    let event = soon_when(&mut followed, |_| true).await;
    assert_eq!((event.number, event.job), (last.number + 1, Some(second.id)));
    fixture.stop().await;
    let error = soon_failed(&mut followed).await;
    assert!(error.is_retriable(), "{error:?}");

    fixture.begin().await.unwrap();
    let fleet = fixture.fleet().await;
    let mut resumed = soon(fleet.events(event.number, true, None)).await.unwrap();
    soon(fleet.cancel(&job.id.to_string())).await.unwrap();
    let next = soon_when(&mut resumed, |_| true).await;
    assert_eq!((next.number, next.kind.as_str()), (event.number + 1, "job_ended"));
    assert!(next.text.contains("is cancelled"), "{}", next.text);

    let of_one = soon(fleet.events(0, false, Some(&second.id.to_string()))).await.unwrap();
    let of_one: Vec<_> = soon(of_one.map(|event| event.unwrap().kind).collect()).await;
    assert_eq!(of_one, ["job_submitted"]);
    assert_eq!(soon(fleet.status()).await.unwrap().last_event, next.number);
}
