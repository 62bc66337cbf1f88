//! Start without a file: a sidecar that is configured by a stream and a token alone.
//!
//! In: `AUTOPLAY_STREAM_URL` and `AUTOPLAY_APP_UNKEY_TOKEN`. Out: the upstream, and a key made from
//! its token.
//!
//! May use: `event`.

use std::collections::BTreeSet;

use super::{
    address::HttpUrl,
    auth::{Permission, StaticKeyConfig},
    environment::EnvVariable,
    findings::ConfigLocation,
    parse_context::ParseContext,
    secret::{Secret, SecretRule},
    upstream::{UpstreamConfig, parse_product_id},
};
use crate::event::Only;

/// Variable with the stream of the only upstream.
const URL_VARIABLE: &str = "AUTOPLAY_STREAM_URL";
/// Variable with the token of the upstream; the SDK reads the same variable.
const TOKEN_VARIABLE: &str = "AUTOPLAY_APP_UNKEY_TOKEN";
/// Name of the key made from the token, in logs and lists.
const KEY_NAME: &str = "upstream-token";

/// Returns the upstream that the environment names.
pub(super) fn upstream(context: &ParseContext<'_>) -> Option<UpstreamConfig> {
    let token = Secret::from_variable(context, TOKEN_VARIABLE, SecretRule::Header);
    let report = |message: String| {
        context.report(ConfigLocation::Variable(URL_VARIABLE.to_owned()), None, message);
    };
    let checked = match context.variable(URL_VARIABLE) {
        EnvVariable::Unset | EnvVariable::Text("") => {
            Err("is not set and there is no configuration file; give --config FILE, or set the variable to the URL of the stream"
                .to_owned())
        }
        EnvVariable::NotUtf8 => Err("is not UTF-8 text".to_owned()),
        EnvVariable::Text(text) => HttpUrl::parse(text),
    };
    let url = checked.map_err(report).ok()?;
    let Some(segment) = url.last_segment() else {
        report(
            "must end in the id of the product, as in https://connector.example.com/stream/prod_abc"
                .to_owned(),
        );
        return None;
    };
    let report_product =
        |message| report(format!("must end in the id of the product, which {message}"));
    let product = parse_product_id(&segment).map_err(report_product).ok()?;
    Some(UpstreamConfig::new(product, url, token))
}

/// Returns the token of the upstream as a key: an SDK client in the same pod reads the variable and
/// sends it.
pub(super) fn upstream_key(upstream: &UpstreamConfig) -> Option<StaticKeyConfig> {
    Some(StaticKeyConfig {
        name: KEY_NAME.to_owned(),
        key: upstream.token.clone()?,
        products: Only::These([upstream.product_id.clone()].into()),
        permissions: BTreeSet::from([Permission::Subscribe, Permission::Publish]),
        max_publishes_per_second: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AllowAnonymous, Config, environment::Environment};

    fn start<const N: usize>(variables: [(&str, &str); N]) -> Result<Config, String> {
        let environment: Environment = variables.into_iter().collect();
        Config::from_environment(&environment, AllowAnonymous::OnLoopback)
            .map_err(|findings| findings.to_string())
    }

    const URL: (&str, &str) = (URL_VARIABLE, "https://c.example.com/stream/prod%20abc?x=1");
    const TOKEN: (&str, &str) = (TOKEN_VARIABLE, "hush");

    #[test]
    fn a_url_and_a_token_make_a_sidecar() {
        let config = start([URL, TOKEN]).unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
        assert!(config.auth.allow_anonymous);
        assert_eq!(config.auth.anonymous_permissions, BTreeSet::from([Permission::Subscribe]));
        let [upstream] = config.upstreams.as_slice() else { panic!("one upstream") };
        assert_eq!(upstream.product_id.as_str(), "prod abc");
        let [key] = config.auth.keys.as_slice() else { panic!("one key") };
        assert_eq!((key.name.as_str(), key.key.expose()), ("upstream-token", "hush"));
        assert_eq!(key.products, Only::These([upstream.product_id.clone()].into()));
        assert_eq!(key.permissions, BTreeSet::from([Permission::Subscribe, Permission::Publish]));
    }

    #[test]
    fn without_a_token_there_is_no_key() {
        for config in [start([URL]), start([URL, (TOKEN_VARIABLE, "")])] {
            let config = config.unwrap();
            assert_eq!(
                (config.upstreams[0].token.as_ref(), config.auth.keys.as_slice()),
                (None, [].as_slice())
            );
        }
    }

    #[test]
    fn without_a_url_both_ways_to_start_are_named() {
        for found in [start([]).unwrap_err(), start([(URL_VARIABLE, "")]).unwrap_err()] {
            assert!(
                found.contains("--config FILE") && found.starts_with("AUTOPLAY_STREAM_URL: "),
                "{found}"
            );
        }
    }

    #[test]
    fn a_url_without_a_product_is_found() {
        for url in ["https://h", "https://h/", "https://h/stream/", "https://h/%00"] {
            assert!(
                start([(URL_VARIABLE, url)])
                    .unwrap_err()
                    .contains("must end in the id of the product"),
                "{url}"
            );
        }
        assert!(
            start([(URL_VARIABLE, "h/p")])
                .unwrap_err()
                .starts_with("AUTOPLAY_STREAM_URL: is not a URL")
        );
    }

    #[test]
    fn a_token_unfit_for_a_header_is_found_without_being_shown() {
        let found = start([URL, (TOKEN_VARIABLE, "hush hush")]).unwrap_err();
        assert!(
            found.starts_with("AUTOPLAY_APP_UNKEY_TOKEN: must be visible ASCII")
                && !found.contains("hush"),
            "{found}"
        );
    }

    #[test]
    fn overrides_and_the_loopback_rule_hold_here_too() {
        let listen = ("AUTOPLAY_RELAY__SERVER__LISTEN", "0.0.0.0:80");
        let found = start([URL, TOKEN, listen]).unwrap_err();
        assert!(found.starts_with("AUTOPLAY_RELAY__SERVER__LISTEN: server.listen: "), "{found}");
        let config =
            start([URL, TOKEN, listen, ("AUTOPLAY_RELAY__AUTH__ALLOW_ANONYMOUS", "false")])
                .unwrap();
        assert_eq!((config.server.listen.port(), config.auth.allow_anonymous), (80, false));
        assert!(
            start([URL, ("AUTOPLAY_RELAY__X", "")])
                .unwrap_err()
                .starts_with("AUTOPLAY_RELAY__X: names no key")
        );
    }
}
