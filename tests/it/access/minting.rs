//! Secrets and key files: the `token` command, and the tokens that the relay accepts.

use super::{open, setup};
use crate::common::{PRODUCT, STREAM, process::Process, relay::Setup};

#[test]
fn the_token_command_mints_tokens_that_the_relay_accepts() {
    let setup = setup("audience = 'relay'", "");
    let (_directory, file) = setup.write();
    let file = file.to_str().unwrap();
    let done = Process::run(
        &[
            "token",
            "--config",
            file,
            "--product",
            PRODUCT,
            "--session-id",
            "s1",
            "--session-id",
            "s2",
            "--user-id",
            "ada",
            "--type",
            "summary",
            "--ttl",
            "90s",
        ],
        &[],
    );
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
    let token = done.stdout.trim_end();
    assert!(
        token.lines().count() == 1 && token.split('.').count() == 3,
        "the token alone: {token}"
    );
    let relay = setup.start();
    let authorization = format!("Bearer {token}");
    open(&relay, &format!("{STREAM}?session_id=s2"), &authorization);
    relay
        .get(&format!("{STREAM}?session_id=s3"), &[("Authorization", &authorization)])
        .problem(403);
    relay.get(&format!("{STREAM}?user_id=bob"), &[("Authorization", &authorization)]).problem(403);
    relay.get(&format!("{STREAM}?type=actions"), &[("Authorization", &authorization)]).problem(403);
    for (arguments, expected) in [
        (["--product", "", "--ttl", "1h"], "must not be empty"),
        (["--product", PRODUCT, "--ttl", "0s"], "longer than 0s"),
        (["--product", PRODUCT, "--ttl", "7"], "--ttl"),
        (["--product", PRODUCT, "--type", ""], "must not be empty"),
        (["--product", PRODUCT, "--session-id", ""], "must not be empty"),
        (["--product", PRODUCT, "--user-id", ""], "must not be empty"),
    ] {
        let done =
            Process::run(&[["token", "--config", file].as_slice(), &arguments].concat(), &[]);
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{arguments:?}: {done:?}");
        assert!(done.stderr.contains(expected), "{arguments:?}: {done:?}");
    }
}

#[test]
fn the_token_command_refuses_to_mint_without_a_secret() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/jwt/p256.pub.pem");
    for (auth, expected) in [
        (format!("[auth.jwt]\nalgorithm = 'ES256'\npublic_key_file = '{keys}'"), "private key"),
        (String::new(), "[auth.jwt] is missing"),
    ] {
        let (_directory, file) = Setup::new().auth(&auth).write();
        let done =
            Process::run(&["token", "--config", file.to_str().unwrap(), "--product", PRODUCT], &[]);
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{done:?}");
        assert!(
            done.stderr.contains(expected) && done.stderr.lines().count() == 1,
            "{}",
            done.stderr
        );
    }
}

#[test]
fn an_invalid_key_file_ends_serve_with_its_path_and_configuration_key() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/jwt/mixed.pub.pem");
    let (_directory, file) = Setup::new()
        .auth(&format!("[auth.jwt]\nalgorithm = 'ES256'\npublic_key_file = '{keys}'"))
        .write();
    let done = Process::run(&["serve", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(
        done.stderr.contains("auth.jwt.public_key_file")
            && done.stderr.contains(&format!("{keys}: key 2")),
        "{}",
        done.stderr
    );
}
