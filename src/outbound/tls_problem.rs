//! Descriptions of TLS errors, with the remedy.
//!
//! In: an error of a connection. Out: a text for the operator, which never repeats what the server
//! sent: names in a certificate could be anything.
//!
//! May use: `error_chain`.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, OtherError};

use crate::error_chain::find_in_chain;

/// Returns the description of the TLS error among `error` and its causes, if there is one.
pub(crate) fn describe_tls_problem(error: &(dyn Error + 'static)) -> Option<String> {
    let text = match find_in_chain::<rustls::Error>(error)? {
        rustls::Error::InvalidCertificate(reason) => {
            return Some(format!("the server's certificate {}", describe_certificate(reason)));
        }
        rustls::Error::AlertReceived(alert) => {
            return Some(format!("no TLS on the connection: {}", describe_alert(*alert)));
        }
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => {
            "what the server sent is not TLS; give the port on which it speaks TLS, or write http:// \
             if it is to be reached without"
        }
        rustls::Error::PeerIncompatible(_) => {
            "the server and the relay have no protocol version or cipher suite in common; the \
             relay speaks TLS 1.2 and 1.3"
        }
        rustls::Error::NoCertificatesPresented => {
            "the server shows no certificate; give it one in its configuration"
        }
        _ => {
            "the server speaks another protocol or version, or something in between changes what \
             it sends; try it with `openssl s_client -connect HOST:PORT`"
        }
    };
    Some(format!("no TLS on the connection: {text}"))
}

/// Returns whether the connection ended in the middle of a handshake.
pub(crate) fn ends_in_handshake(error: &(dyn Error + 'static)) -> bool {
    find_in_chain::<io::Error>(error)
        .is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

fn describe_alert(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::ProtocolVersion => {
            "the server refuses the protocol version; the relay speaks TLS 1.2 and 1.3"
        }
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "the server accepts no cipher suite that the relay offers, or demands a client \
             certificate, which the relay does not have"
        }
        AlertDescription::UnrecognisedName => {
            "the server does not know the host of the url; give it a certificate for that host"
        }
        AlertDescription::NoApplicationProtocol => {
            "the server speaks neither HTTP/1.1 nor HTTP/2 on this port (ALPN); give the port on \
             which it speaks HTTP"
        }
        AlertDescription::CertificateRequired
        | AlertDescription::NoCertificate
        | AlertDescription::BadCertificate
        | AlertDescription::UnknownCA
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => {
            "the server demands a client certificate, which the relay does not have; let the relay \
             in without one"
        }
        _ => return format!("the server ended it with the alert {alert:?}; its log says why"),
    };
    text.to_owned()
}

fn describe_certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer => {
            "is not signed by a root that this relay trusts, or the server does not send its \
             intermediate certificates; give its root in egress.ca_file or SSL_CERT_FILE if it is to be trusted"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired; renew it, unless this machine's clock is wrong"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet; see which machine's clock is wrong"
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "is for another name: it has no subjectAltName, and its common name does not count; \
             have one made whose subjectAltName has the host of the url"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is for another name; its subjectAltName must have the host of the url"
        }
        CertificateError::Revoked => "is revoked; replace it",
        CertificateError::BadSignature => {
            "has a signature that the key of its root has not made; give the root that has signed \
             it in egress.ca_file or SSL_CERT_FILE"
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "is signed in a way that is not accepted, such as SHA-1 or a short RSA key; have it \
             signed with SHA-256 and RSA of 2048 bits, or ECDSA"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not for servers; its extendedKeyUsage must have serverAuth"
        }
        CertificateError::UnhandledCriticalExtension => {
            "has a critical extension that is not known here; have one made without it"
        }
        CertificateError::BadEncoding => "cannot be read; have another one made",
        CertificateError::Other(OtherError(cause)) => match find_in_chain(&**cause) {
            Some(error) => describe_webpki(error),
            None => "cannot be trusted",
        },
        _ => "cannot be trusted",
    }
}

/// Describes the errors for which rustls has no name of its own.
fn describe_webpki(error: &webpki::Error) -> &'static str {
    match error {
        webpki::Error::CaUsedAsEndEntity => {
            "is that of an authority (CA:TRUE); if it is self-signed, give that very certificate in \
             egress.ca_file or SSL_CERT_FILE, else have one made for the server, with CA:FALSE"
        }
        webpki::Error::EndEntityUsedAsCa => {
            "is signed by a certificate that is no authority (CA:FALSE); have it signed by one"
        }
        webpki::Error::NameConstraintViolation => {
            "is for a name that its authority may not sign for (nameConstraints)"
        }
        webpki::Error::PathLenConstraintViolated => {
            "is signed through more authorities than they allow (pathlen)"
        }
        webpki::Error::UnsupportedCertVersion => {
            "is not of X.509 version 3; have one made with a subjectAltName"
        }
        _ => "cannot be trusted; `openssl x509 -text` shows what is in it",
    }
}
