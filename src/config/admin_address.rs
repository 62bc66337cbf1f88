//! Where `serve` listens for operators, for a command that asks the running relay.
//!
//! In: the file and the environment that `serve` reads. Out: the address of its admin listener.
//! Only that key is judged: a file that became invalid after the start must not make a relay that
//! runs by the former one look unready.
//!
//! May use: no other module.

use std::{net::SocketAddr, path::Path};

use toml::de::DeTable;

use super::{
    Config, Environment,
    findings::{ConfigLocation, Finding, Findings},
    parse_context::ParseContext,
    read_config_file,
    section::Section,
    server,
};

impl Config {
    /// Returns the address of the admin listener, if `serve` was started with the file at `path`
    /// (or without one) and this environment.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is not TOML, or when the address is wrong or has port 0,
    /// which means a port that the running relay chooses.
    pub(crate) fn admin_address(
        path: Option<&Path>,
        environment: &Environment,
    ) -> Result<SocketAddr, Findings> {
        let name = path.map_or_else(|| "environment".to_owned(), |path| path.display().to_string());
        let text = match path {
            Some(path) => read_config_file(path).map_err(|message| Finding {
                location: ConfigLocation::File(name.clone()),
                key: None,
                message,
            })?,
            None => String::new(),
        };
        let (document, errors) = DeTable::parse_recoverable(&text);
        let context = ParseContext::new(&name, &text, environment);
        context.report_syntax_errors(&errors);
        let mut section = Section::root(&context, document.get_ref()).section("server");
        let address = server::read_admin_listen(&section.entry("admin_listen"));
        if address.port() == 0 {
            section.entry("admin_listen").report(
                "port 0 lets the operating system choose the port; give --url with the one that \
                 the relay logs as admin_listen",
            );
        }
        match context.findings() {
            Some(findings) => Err(findings),
            None => Ok(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLE: &str = "AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN";

    fn address(text: Option<&str>, variables: &[(&str, &str)]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text.unwrap_or_default()).unwrap();
        let environment: Environment = variables.iter().copied().collect();
        Config::admin_address(text.map(|_| file.path()), &environment)
            .map(|address| address.to_string())
            .map_err(|findings| findings.to_string())
    }

    #[test]
    fn the_environment_overrides_the_file_and_the_file_the_default() {
        let file = Some("[server]\nadmin_listen = '127.0.0.1:9191'");
        assert_eq!(address(None, &[]).unwrap(), "127.0.0.1:9090");
        assert_eq!(address(file, &[]).unwrap(), "127.0.0.1:9191");
        for file in [None, file] {
            assert_eq!(address(file, &[(VARIABLE, "10.0.0.1:9292")]).unwrap(), "10.0.0.1:9292");
        }
    }

    #[test]
    fn faults_of_other_keys_do_not_matter_and_those_of_the_address_do() {
        let file = "[server]\nlisten = 'nonsense'\ncolour = 1\nadmin_listen = '127.0.0.1:9191'";
        assert_eq!(address(Some(file), &[]).unwrap(), "127.0.0.1:9191");
        let wrong = ["[server]\nadmin_listen = 'here'", "[server]\nadmin_listen = '[::1]:0'"];
        for file in wrong {
            assert!(address(Some(file), &[]).unwrap_err().contains("server.admin_listen: "));
        }
        assert!(address(Some("[server"), &[]).unwrap_err().contains("not valid TOML"));
    }
}
