//! `[auth.jwt]`: how scoped tokens are verified.
//!
//! In: the section, if it is present. Out: [`JwtConfig`], in which each algorithm has exactly the
//! keys that it needs.
//!
//! May use: no other module.

use std::path::PathBuf;

use toml::Value;

use super::{
    entry::ConfigEntry,
    findings::quoted,
    keys::{ConfigKey, ConfigValue, config_keys},
    masked::MaskedToml,
    public_keys::{self, PublicKey, PublicKeyAlgorithm},
    secret::{Secret, SecretEntries, SecretRule},
    section::Section,
};

config_keys! {
    /// Settings for accepting scoped tokens.
    struct JwtConfig {
        /// The algorithm with its keys; no other algorithm is accepted.
        verification: JwtVerification = AtReload;
        /// Required audience (`aud`), if one is configured.
        audience: Option<String> = AtReload;
        /// Whether a token may come as `?access_token=`.
        allow_query_token: bool = AtReload;
        /// Name of the cookie that a token may come in.
        cookie_name: Option<String> = AtReload;
    }
}

/// Algorithm and keys that verify the signature of a token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum JwtVerification {
    /// HS256.
    SharedSecret {
        /// Secret to sign and verify with; 32 bytes or more.
        secret: Secret,
        /// Secret to verify with only, while clients still hold tokens from before a rotation.
        previous_secret: Option<Secret>,
    },
    /// Signatures by a private key that the relay does not have.
    PublicKeys {
        /// The signature algorithm.
        algorithm: PublicKeyAlgorithm,
        /// PEM file; may hold several keys.
        public_key_file: PathBuf,
        /// Keys of the file; one of them must verify a token.
        keys: Vec<PublicKey>,
    },
}

impl JwtVerification {
    /// Returns the name of the algorithm in the configuration and in the header of a token.
    pub(crate) fn algorithm_name(&self) -> &'static str {
        match self {
            Self::SharedSecret { .. } => "HS256",
            Self::PublicKeys { algorithm: PublicKeyAlgorithm::EdDsa, .. } => "EdDSA",
            Self::PublicKeys { algorithm: PublicKeyAlgorithm::Es256, .. } => "ES256",
            Self::PublicKeys { algorithm: PublicKeyAlgorithm::Rs256, .. } => "RS256",
        }
    }
}

impl ConfigValue for JwtVerification {
    fn to_toml(&self) -> Option<Value> {
        None
    }

    fn path(key: ConfigKey<'_>) -> String {
        format!("{}: algorithm or keys", key.section)
    }

    fn write(&self, key: ConfigKey<'_>, document: &mut MaskedToml) {
        document.line("algorithm", self.algorithm_name());
        match self {
            Self::SharedSecret { secret, previous_secret } => {
                secret.write(ConfigKey { name: "secret", ..key }, document);
                previous_secret.write(ConfigKey { name: "previous_secret", ..key }, document);
            }
            Self::PublicKeys { public_key_file, .. } => {
                public_key_file.write(ConfigKey { name: "public_key_file", ..key }, document);
            }
        }
    }
}

/// Entries of the verification, before it is known which of them the algorithm uses.
struct JwtVerificationEntries<'a> {
    algorithm: ConfigEntry<'a>,
    secret: SecretEntries<'a>,
    previous_secret: SecretEntries<'a>,
    public_key_file: ConfigEntry<'a>,
}

impl JwtConfig {
    /// Reads the section; returns [`None`] if neither the file nor the environment has it.
    pub(super) fn read(mut section: Section<'_>) -> Option<Self> {
        // All keys are registered even if the section is absent: otherwise an empty override of one
        // would be reported as an unknown variable.
        let verification = JwtVerificationEntries {
            algorithm: section.entry("algorithm"),
            secret: SecretEntries::lookup(&mut section, "secret"),
            previous_secret: SecretEntries::lookup(&mut section, "previous_secret"),
            public_key_file: section.entry("public_key_file"),
        };
        let (audience, query_token) =
            (section.entry("audience"), section.entry("allow_query_token"));
        let cookie_entry = section.entry("cookie_name");
        if !section.is_present() {
            return None;
        }
        let verification = verification.read(&mut section);
        let audience = audience.optional(|text| Ok(text.to_owned()));
        let allow_query_token = query_token.boolean().unwrap_or(false);
        let cookie_name = cookie_entry.optional(parse_cookie_name);
        section.finish();
        Some(Self { verification: verification?, audience, allow_query_token, cookie_name })
    }
}

impl JwtVerificationEntries<'_> {
    fn read(&self, section: &mut Section<'_>) -> Option<JwtVerification> {
        let algorithm = match self.algorithm.is_given() {
            true => self.algorithm.parse_with(parse_algorithm)?,
            false => None,
        };
        match algorithm {
            None => self.read_shared_secret(section),
            Some(algorithm) => self.read_public_keys(algorithm),
        }
    }

    fn read_shared_secret(&self, section: &mut Section<'_>) -> Option<JwtVerification> {
        if self.public_key_file.is_given() {
            self.public_key_file.report(
                "has no use with HS256; remove it, or set algorithm to EdDSA, ES256 or RS256",
            );
        }
        let secret = self.secret.read_required(section, SecretRule::Hmac);
        let previous_secret = self.previous_secret.read(SecretRule::Hmac);
        Some(JwtVerification::SharedSecret { secret: secret?, previous_secret })
    }

    fn read_public_keys(&self, algorithm: PublicKeyAlgorithm) -> Option<JwtVerification> {
        for unused in
            [&self.secret, &self.previous_secret].into_iter().filter_map(SecretEntries::entry)
        {
            unused.report("has no use with a public key; remove it, or set algorithm to HS256");
        }
        if !self.public_key_file.is_given() {
            self.public_key_file.report("is required unless algorithm is HS256");
        }
        let public_key_file = self.public_key_file.readable_path()?;
        let result = public_keys::read_public_keys(&public_key_file, algorithm);
        let keys = result.map_err(|message| self.public_key_file.report(message)).ok()?;
        Some(JwtVerification::PublicKeys { algorithm, public_key_file, keys })
    }
}

/// Returns the algorithm of this name; [`None`] means HS256, which has no public key.
fn parse_algorithm(text: &str) -> Result<Option<PublicKeyAlgorithm>, String> {
    match text {
        "HS256" => Ok(None),
        "EdDSA" => Ok(Some(PublicKeyAlgorithm::EdDsa)),
        "ES256" => Ok(Some(PublicKeyAlgorithm::Es256)),
        "RS256" => Ok(Some(PublicKeyAlgorithm::Rs256)),
        _ => Err(format!("{} is not supported; write HS256, EdDSA, ES256 or RS256", quoted(text))),
    }
}

/// Checks that a cookie name is a `token` of RFC 9110, section 5.6.2, as RFC 6265 requires.
fn parse_cookie_name(text: &str) -> Result<String, String> {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.bytes().all(is_token_byte) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is not a cookie's name; use letters, digits, - and _", quoted(text)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::{findings, parsed, parsed_with};

    const SECRET: &str = "secret = 'hush-hush-hush-hush-hush-hush-32'";

    #[test]
    fn without_the_section_there_are_no_scoped_tokens() {
        assert_eq!(parsed("").auth.jwt, None);
        let empty = [
            ("AUTOPLAY_RELAY__AUTH__JWT__SECRET", ""),
            ("AUTOPLAY_RELAY__AUTH__JWT__ALLOW_QUERY_TOKEN", ""),
        ];
        assert_eq!(parsed_with("", &empty.into_iter().collect()).auth.jwt, None);
    }

    #[test]
    fn the_environment_alone_can_give_the_section() {
        let environment =
            [("AUTOPLAY_RELAY__AUTH__JWT__SECRET", "hush-hush-hush-hush-hush-hush-32")];
        let jwt = parsed_with("", &environment.into_iter().collect()).auth.jwt.unwrap();
        let JwtVerification::SharedSecret { secret, previous_secret: None } = jwt.verification
        else {
            panic!("HS256 is the default")
        };
        assert_eq!(secret.expose(), "hush-hush-hush-hush-hush-hush-32");
    }

    #[test]
    fn hs256_needs_a_secret_of_32_bytes_and_no_public_key() {
        let expected =
            "relay.toml:1: auth.jwt.secret: is required; give secret, secret_env or secret_file";
        assert_eq!(findings("[auth.jwt]"), expected);
        let short = findings(
            "[auth.jwt]\nsecret = 'hush-hush-hush-hush-hush-hush-h'\nprevious_secret = 'hush'",
        );
        assert_eq!(short.matches("must have 32 bytes or more").count(), 2, "{short}");
        assert!(!short.contains("hush"));
        let found = findings(&format!("[auth.jwt]\n{SECRET}\npublic_key_file = '/no/key'"));
        assert!(
            found.starts_with("relay.toml:3: auth.jwt.public_key_file: has no use with HS256"),
            "{found}"
        );
    }

    /// Returns the path of a key that this repository has for tests.
    fn test_key_path(name: &str) -> String {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/jwt")
            .join(name)
            .display()
            .to_string()
    }

    fn jwt_section(algorithm: &str, file: &str) -> String {
        format!(
            "[auth.jwt]\nalgorithm = '{algorithm}'\npublic_key_file = '{}'",
            test_key_path(file)
        )
    }

    #[test]
    fn the_other_algorithms_need_public_keys_and_no_secret() {
        for (name, expected, file, count) in [
            ("EdDSA", PublicKeyAlgorithm::EdDsa, "ed25519.pub.pem", 1),
            ("ES256", PublicKeyAlgorithm::Es256, "p256.pub.pem", 1),
            ("RS256", PublicKeyAlgorithm::Rs256, "rsa.pub.pem", 1),
            ("ES256", PublicKeyAlgorithm::Es256, "p256-two.pub.pem", 2),
        ] {
            let verification = parsed(&jwt_section(name, file)).auth.jwt.unwrap().verification;
            assert_eq!(verification.algorithm_name(), name);
            let JwtVerification::PublicKeys { algorithm, public_key_file, keys: read } =
                verification
            else {
                panic!("{name} has public keys")
            };
            assert_eq!(
                (algorithm, public_key_file, read.len()),
                (expected, test_key_path(file).into(), count)
            );
            let found = findings(&format!("{}\n{SECRET}", jwt_section(name, file)));
            assert!(
                found.starts_with("relay.toml:4: auth.jwt.secret: has no use with a public key"),
                "{found}"
            );
        }
        assert!(
            findings("[auth.jwt]\nalgorithm = 'ES256'")
                .contains("auth.jwt.public_key_file: is required")
        );
        let found = findings("[auth.jwt]\nalgorithm = 'ES256'\npublic_key_file = '/no/key'");
        assert!(found.contains("cannot read /no/key"), "{found}");
    }

    #[test]
    fn a_key_that_does_not_fit_is_named_by_file_and_number() {
        for (algorithm, file, expected) in [
            ("EdDSA", "p256.pub.pem", "key 1 is not an Ed25519 key"),
            ("ES256", "rsa.pub.pem", "key 1 is not a P-256 key"),
            ("RS256", "ed25519.pub.pem", "key 1 is not an RSA key"),
            ("ES256", "p384.pub.pem", "key 1 is not a P-256 key"),
            ("ES256", "mixed.pub.pem", "key 2 is not a P-256 key"),
            ("RS256", "rsa1024.pub.pem", "key 1 has less than 2048 bits"),
            ("ES256", "../summary.json", "holds no PUBLIC KEY block"),
        ] {
            let found = findings(&jwt_section(algorithm, file));
            assert!(found.starts_with("relay.toml:3: auth.jwt.public_key_file: "), "{found}");
            assert!(found.contains(expected) && found.contains(&test_key_path(file)), "{found}");
        }
        let private = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            &private,
            "-----BEGIN PRIVATE KEY-----\naHVzaA==\n-----END PRIVATE KEY-----\n",
        )
        .unwrap();
        let found = findings(&jwt_section("ES256", private.path().to_str().unwrap()));
        assert!(found.contains("holds a private key") && !found.contains("aHVzaA"), "{found}");
        std::fs::write(&private, "x".repeat(2 << 20)).unwrap();
        let found = findings(&jwt_section("ES256", private.path().to_str().unwrap()));
        assert!(found.contains("is larger than 1 MiB"), "{found}");
    }

    #[test]
    fn other_algorithms_are_refused() {
        for name in ["none", "HS512", "hs256"] {
            let found = findings(&format!("[auth.jwt]\nalgorithm = '{name}'\n{SECRET}"));
            assert!(
                found.contains("auth.jwt.algorithm") && found.contains("is not supported"),
                "{found}"
            );
        }
    }

    #[test]
    fn a_cookie_name_is_a_token() {
        let text = format!("[auth.jwt]\n{SECRET}\ncookie_name = ");
        let name = |name: &str| parsed(&format!("{text}'{name}'")).auth.jwt.unwrap().cookie_name;
        assert_eq!(name("__Secure-autoplay-relay").as_deref(), Some("__Secure-autoplay-relay"));
        assert_eq!(name(""), None);
        assert!(findings(&format!("{text}'a b'")).contains("is not a cookie's name"));
    }

    #[test]
    fn an_unknown_key_of_the_section_is_found() {
        assert!(
            findings(&format!("[auth.jwt]\n{SECRET}\nalg = 'x'"))
                .starts_with("relay.toml:3: auth.jwt.alg: unknown key")
        );
    }
}
