//! What people do: submit, list, watch, cancel; and what they are told when it is wrong.

use futures::StreamExt as _;
use hatchery_common::{
    dataset::{DatasetFile, DatasetManifest},
    digest::Digest,
    id::{BlobId, DatasetId, RequestId},
    recipe::{RawTrainSpec, ReplicaPolicy, TrainSpec},
    view::JobView,
};
use hatchery_proto::{client::CallError, v1};
use tonic::{Code, transport::Channel};

use crate::fixture::{Fixture, name, soon, soon_when, spec};

/// Makes a good request wrong.
type Spoil = dyn Fn(&mut v1::SubmitJobRequest);

/// Sets a key of the spec's JSON, by its path: `/train/lr`.
fn set(request: &mut v1::SubmitJobRequest, path: &str, value: impl Into<serde_json::Value>) {
    let (parent, key) = path.rsplit_once('/').unwrap();
    let mut spec: serde_json::Value = serde_json::from_slice(&request.spec.as_ref().unwrap().json).unwrap();
    spec.pointer_mut(parent).unwrap()[key] = value.into();
    let json = serde_json::to_vec(&spec).unwrap();
    request.spec = Some(v1::JobSpec { digest: Digest::of(&json).as_bytes().to_vec(), json });
}

/// A client without the checks of the fixture's own.
async fn raw_fleet(fixture: &Fixture) -> v1::fleet_client::FleetClient<Channel> {
    use hatchery_net::transport::{Profile, connect};
    let credentials = fixture.credentials();
    let config = credentials.client_config().unwrap();
    let channel = soon(connect(&credentials.addresses, config, Profile::Control)).await.unwrap();
    v1::fleet_client::FleetClient::new(channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_gives_the_same_job_also_after_a_restart() {
    let mut fixture = Fixture::start().await;
    let (request, mut spec) = (RequestId::random(), spec(fixture.dataset().await));
    let fleet = fixture.fleet().await;
    let (first, duplicate) = soon(fleet.submit(request, &spec)).await.unwrap();
    assert!(!duplicate);
    assert_eq!((first.phase.name(), &first.spec), ("queued", &spec));
    assert!(first.why.as_ref().unwrap().starts_with("waiting"), "{:?}", first.why);
    // Many at once: still one job.
    let again = futures::future::join_all((0..20).map(|_| fleet.submit(request, &spec))).await;
    assert!(again.into_iter().all(|one| one.is_ok_and(|(job, duplicate)| duplicate && job.id == first.id)));

    fixture.restart().await;
    let fleet = fixture.fleet().await;
    let (again, duplicate) = soon(fleet.submit(request, &spec)).await.unwrap();
    assert!(duplicate && again.id == first.id);
    assert_eq!(soon(fleet.jobs(true)).await.unwrap().len(), 1);

    spec.name = name("other");
    let error = soon(fleet.submit(request, &spec)).await.unwrap_err();
    let CallError::Refused(message) = &error else { panic!("{error:?}") };
    assert!(message.contains("already used") && message.contains(&first.id.to_string()), "{message}");
    let mut raw = raw_fleet(&fixture).await;
    let request = v1::SubmitJobRequest { request_id: request.to_string(), spec: Some(spec.into()) };
    assert_eq!(soon(raw.submit_job(request)).await.unwrap_err().code(), Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_is_told_by_field() {
    let fixture = Fixture::start().await;
    let good = spec(fixture.dataset().await);
    let mut raw = raw_fleet(&fixture).await;
    let submit = async |raw: &mut v1::fleet_client::FleetClient<Channel>, change: &Spoil| {
        let mut request = v1::SubmitJobRequest {
            request_id: RequestId::random().to_string(),
            spec: Some(good.clone().into()),
        };
        change(&mut request);
        let status = soon(raw.submit_job(request)).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let cases: [(&Spoil, &str); 9] = [
        (&|request| request.request_id = "x".into(), "request_id: "),
        (&|request| request.spec = None, "spec: "),
        (&|request| set(request, "/name", "a b"), "spec.name: "),
        (&|request| set(request, "/train/lr", serde_json::Value::Null), "spec.train.lr: "),
        (
            &|request| set(request, "/train/precision", "fp8"),
            "this coordinator does not know `fp8` for `train.precision`: it is of version ",
        ),
        (
            &|request| set(request, "/train/label_smoothing", 0.1),
            "this coordinator does not know `train.label_smoothing`: it is of version ",
        ),
        (&|request| request.spec.as_mut().unwrap().digest = vec![0; 32], "spec.digest: "),
        (&|request| set(request, "/model/n_head", 5), "spec.model.n_embd: "),
        (&|request| set(request, "/model/n_layer", 0), "spec.model.n_layer: "),
    ];
    for (change, field) in cases {
        let (code, message) = submit(&mut raw, change).await;
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.starts_with(field), "{field} is not named in {message}");
    }
    let fleet = fixture.fleet().await;
    let mut lost = good.clone();
    lost.dataset = DatasetId(Digest::of(b"nowhere"));
    let error = soon(fleet.submit(RequestId::random(), &lost)).await.unwrap_err();
    assert!(
        matches!(&error, CallError::NotFound(text) | CallError::Refused(text) if text.contains("dataset")),
        "{error:?}"
    );
    let mut large = good.clone();
    large.train = TrainSpec::new(RawTrainSpec { block: 1 << 20, ..good.train.raw().clone() }).unwrap();
    let error = soon(fleet.submit(RequestId::random(), &large)).await.unwrap_err();
    assert!(matches!(error, CallError::Refused(_)), "{error:?}");
    assert_eq!(soon(fleet.jobs(true)).await.unwrap(), []);
}

/// As an older command line sends it.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_absent_have_their_defaults() {
    let fixture = Fixture::start().await;
    let good = spec(fixture.dataset().await);
    let mut raw = raw_fleet(&fixture).await;
    let mut older: serde_json::Value = serde_json::from_slice(&good.to_json()).unwrap();
    for key in ["log_every", "accumulate", "ema_decay", "precision"] {
        older["train"].as_object_mut().unwrap().remove(key).unwrap();
    }
    older.as_object_mut().unwrap().remove("replicate").unwrap();
    let json = serde_json::to_vec(&older).unwrap();
    let request = v1::SubmitJobRequest {
        request_id: RequestId::random().to_string(),
        spec: Some(v1::JobSpec { digest: Digest::of(&json).as_bytes().to_vec(), json }),
    };
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let answer = soon(raw.submit_job(request.clone())).await.unwrap().into_inner();
        jobs.push((JobView::try_from(answer.job.unwrap()).unwrap(), answer.duplicate));
    }
    assert_eq!((jobs[0].1, jobs[1].1), (false, true), "the digest is of the bytes as they came");
    let defaults = RawTrainSpec::default();
    let train = jobs[0].0.spec.train.raw();
    assert_eq!((train.log_every, train.accumulate), (defaults.log_every, defaults.accumulate));
    assert_eq!((train.precision, &jobs[0].0.spec.replicate), (defaults.precision, &ReplicaPolicy::default()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_stays_with_its_job() {
    let mut fixture = Fixture::start().await;
    let mut noted = spec(fixture.dataset().await);
    noted.note = Some("the first with dropout".to_owned().try_into().unwrap());
    let fleet = fixture.fleet().await;
    let job = soon(fleet.submit(RequestId::random(), &noted)).await.unwrap().0;
    fixture.restart().await;
    let fleet = fixture.fleet().await;
    assert_eq!(soon(fleet.job(&job.id.to_string())).await.unwrap().spec, noted);

    let mut raw = raw_fleet(&fixture).await;
    for (note, expected) in [
        ("x".repeat(501), "spec.note: must have at most 500 characters, not 501"),
        ("two\nlines".to_owned(), "spec.note: must be one line without control characters"),
    ] {
        let request_id = RequestId::random().to_string();
        let mut request = v1::SubmitJobRequest { request_id, spec: Some(noted.clone().into()) };
        set(&mut request, "/note", note);
        assert_eq!(soon(raw.submit_job(request)).await.unwrap_err().message(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_needs_its_blobs() {
    let fixture = Fixture::start().await;
    let fleet = fixture.fleet().await;
    let known = soon(fleet.datasets()).await.unwrap();
    assert_eq!(known, []);
    let file = |blob| DatasetFile { path: "a".into(), blob, size_bytes: 5 };
    let manifest = DatasetManifest::new(name("lost"), vec![file(BlobId(Digest::of(b"?")))]).unwrap();
    let error = soon(fleet.create_dataset(&manifest)).await.unwrap_err().to_string();
    assert!(error.contains("1 of the 1 blobs named are not here"), "{error}");
    let id = fixture.dataset().await;
    let datasets = soon(fleet.datasets()).await.unwrap();
    assert_eq!(datasets.len(), 1);
    assert_eq!((datasets[0].id, datasets[0].files, datasets[0].name.as_str()), (id, 1, "hamlet"));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_found_watched_and_cancelled() {
    let fixture = Fixture::start().await;
    let fleet = fixture.fleet().await;
    let error = soon(fleet.job("latest")).await.unwrap_err();
    assert!(matches!(error, CallError::NotFound(_)), "{error:?}");
    let job = fixture.submit().await;
    for given in ["latest", "demo", &job.id.to_string(), &job.id.to_string()[..6]] {
        assert_eq!(soon(fleet.job(given)).await.unwrap().id, job.id, "{given}");
    }
    let error = soon(fleet.job("dmo")).await.unwrap_err();
    assert_eq!(error, CallError::NotFound("there is no job `dmo`; did you mean `demo`?".into()));
    let second = soon(fleet.submit(RequestId::random(), &job.spec)).await.unwrap().0;
    let error = soon(fleet.job("demo")).await.unwrap_err();
    let CallError::Refused(message) = &error else { panic!("{error:?}") };
    assert!(message.contains("2 jobs") && message.contains(&second.id.to_string()[..12]), "{message}");
    assert_eq!(soon(fleet.job("latest")).await.unwrap().id, second.id);

    let mut watched = soon(fleet.watch_job(&job.id.to_string())).await.unwrap();
    assert_eq!(soon_when(&mut watched, |_| true).await.phase.name(), "queued");
    assert_eq!(soon(fleet.cancel(&job.id.short())).await.unwrap().phase.name(), "cancelled");
    assert_eq!(soon_when(&mut watched, |job| job.phase.is_terminal()).await.phase.name(), "cancelled");
    assert!(soon(watched.next()).await.is_none(), "an ended job is watched no more");
    let error = soon(fleet.cancel(&job.id.to_string())).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(text) if text.contains("already cancelled")), "{error:?}");
    let live: Vec<_> = soon(fleet.jobs(false)).await.unwrap().into_iter().map(|job| job.id).collect();
    assert_eq!(live, [second.id]);
    let all: Vec<_> = soon(fleet.jobs(true)).await.unwrap().into_iter().map(|job| job.id).collect();
    assert_eq!(all, [second.id, job.id], "newest first");
}
