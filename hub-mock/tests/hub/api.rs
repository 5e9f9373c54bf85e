//! The served OpenAPI document against what is really sent.

use http::Method;
use jtnt_hub_mock::{Filter, Hub};
use jtnt_proto::hub::JobStatusState;
use serde_json::Value;

use crate::{
    agent::{Agent, Ask, Reply, enroll_request, result, send, status},
    jobs::{chunk, enqueue, enqueue_loud},
};

/// What is wrong with `value` by `schema`; the part of JSON Schema that the document uses.
fn faults(document: &Value, schema: &Value, value: &Value, at: &str, out: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let target = document.pointer(name.trim_start_matches('#')).unwrap();
        return faults(document, target, value, at, out);
    }
    let listed = schema["type"].as_array().into_iter().flatten();
    let kinds: Vec<&str> = listed.chain([&schema["type"]]).filter_map(Value::as_str).collect();
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !kinds.contains(&kind) {
        out.push(format!("{at}: {kind} is none of {kinds:?}"));
    }
    if schema["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        out.push(format!("{at}: {value} is not listed"));
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        if value.get(required.as_str().unwrap()).is_none() {
            out.push(format!("{at}: {required} is missing"));
        }
    }
    for (key, member) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{key}");
        match (&schema["properties"][key], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => out.push(format!("{at}: unknown")),
            (Value::Null, Value::Null | Value::Bool(true)) => {}
            (Value::Null, further) => faults(document, further, member, &at, out),
            (property, _) => faults(document, property, member, &at, out),
        }
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        faults(document, &schema["items"], item, &format!("{at}[{n}]"), out);
    }
}

fn conforms(document: &Value, schema: &Value, value: &Value, what: &str) {
    assert!(schema.is_object(), "no schema for {what}");
    let mut found = Vec::new();
    faults(document, schema, value, what, &mut found);
    assert_eq!(found, Vec::<String>::new());
}

/// The operation that a request is.
fn operation<'a>(document: &'a Value, method: &str, path: &str) -> &'a Value {
    let path: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let fits = |template: &str| {
        let parts: Vec<&str> = template.split('/').collect();
        parts.len() == path.len()
            && parts.iter().zip(&path).all(|(t, p)| t == p || t.starts_with('{'))
    };
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().filter(|(t, _)| fits(t)).map(|(_, o)| &o[method.to_lowercase()]);
    let found: Vec<&Value> = operations.filter(|o| o.is_object()).collect();
    assert_eq!(found.len(), 1, "{method} {path:?}");
    found[0]
}

fn reply_conforms(document: &Value, method: &str, path: &str, reply: &Reply) {
    let responses = &operation(document, method, path)["responses"];
    let response = &responses[reply.status.as_str()];
    let response = if response.is_null() { &responses["default"] } else { response };
    let Some(kind) = reply.headers.get("content-type") else {
        assert!(reply.body.is_empty());
        return;
    };
    let media = &response["content"][kind.to_str().unwrap()];
    let what = format!("{method} {path} {}", reply.status);
    if kind.to_str().unwrap().ends_with("json") {
        conforms(document, &media["schema"], &reply.json(), &what);
    } else {
        assert!(media.is_object(), "{what}: {kind:?}");
    }
}

#[tokio::test]
async fn every_request_and_answer_is_as_the_document_says() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let reply = send(&hub, None, Ask::get("/openapi.json")).await.unwrap();
    let document: Value = reply.json();
    serde_json::from_value::<utoipa::openapi::OpenApi>(document.clone()).unwrap();

    let loud = format!("/api/v1/jobs/{}/output", enqueue_loud(&hub, &agent).await);
    let id = enqueue(&hub, &agent).await;
    let artifact = hub.put_artifact(b"content").unwrap().sha256;
    let operator = hub.operator().unwrap();
    let policy = serde_json::json!({ "version": 1 });
    let kind = jtnt_proto::envelope::PayloadType::Policy;
    let policy = operator.sign(jtnt_hub_mock::operator::Role::Policy, kind, &policy);
    let (enrolment, _) = enroll_request(
        &hub.token().await.unwrap(),
        &ed25519_dalek::SigningKey::from_bytes(&[5; 32]),
    );
    let upload = format!("/api/v1/artifacts/{id}/file?offset=0");
    let job = |what: &str| format!("/api/v1/jobs/{id}/{what}");
    let no_policy = agent.get(&hub, "/api/v1/policy").await;
    reply_conforms(&document, "GET", "/api/v1/policy", &no_policy);
    hub.publish_policy(policy).await.unwrap();
    let asks = [
        Ask::post("/api/v1/enroll", &enrolment),
        Ask::get("/api/v1/trust/root/1"),
        Ask::get("/api/v1/trust/root/9"),
        Ask::post("/api/v1/heartbeat", &agent.heartbeat(&hub)),
        Ask::get("/api/v1/jobs?wait=0"),
        Ask::post(&job("status"), &status(JobStatusState::Accepted)),
        Ask::raw(Method::PUT, &upload, "part"),
        Ask::raw(Method::PUT, &upload, "part"),
        Ask::put(&loud, &chunk(b"said")),
        Ask::put(&job("output"), &chunk(b"nobody asked")),
        Ask::post(&job("result"), &result(&id)),
        Ask::get("/api/v1/policy"),
        Ask::post("/api/v1/certificates/renew", &agent.renewal(&hub).0),
        Ask::get(&format!("/api/v1/artifacts/{artifact}")),
        Ask::raw(Method::PUT, "/api/v1/audit/log?from=0", ""),
        Ask::raw(Method::PUT, "/api/v1/audit/log?from=0", "no line\n"),
        Ask::get("/openapi.json"),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for ask in asks {
        let (method, path) = (ask.method.to_string(), ask.path.clone());
        let reply = agent.ask(&hub, ask).await.unwrap();
        reply_conforms(&document, &method, &path, &reply);
        let id = &operation(&document, &method, &path)["operationId"];
        seen.insert(id.as_str().unwrap().to_owned());
    }
    let all = document["paths"].as_object().unwrap().values();
    let all = all.flat_map(|p| p.as_object().unwrap().values());
    let all: std::collections::BTreeSet<_> =
        all.map(|o| o["operationId"].as_str().unwrap().to_owned()).collect();
    assert_eq!(seen, all, "each operation was tried");
    for request in hub.requests(&Filter::default()) {
        let schema = &operation(&document, &request.method, &request.path)["requestBody"]["content"]
            ["application/json"]["schema"];
        if let Some(body) = &request.body {
            conforms(&document, schema, body, &request.path);
        }
    }
}
