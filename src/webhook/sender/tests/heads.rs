//! Heads of requests and responses: what is sent, what is read, and what counts.

use tokio::io::AsyncWriteExt;

use super::*;

#[tokio::test]
async fn a_success_is_one_by_its_head() {
    const TRUNCATED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok";
    for then in [AfterAnswer::Close, AfterAnswer::Reset, AfterAnswer::Hang] {
        let receiver = ScriptedReceiver::new(TRUNCATED, then).await;
        let sender = sender(&receiver.url(), "timeout = '20s'");
        for connections in 1..=2 {
            let (attempt, disposition) = post(&sender).await;
            assert_eq!(
                (attempt.outcome, attempt.status, disposition),
                (Outcome::Accepted, Some(200), Disposition::Accepted),
                "{then:?}"
            );
            assert!(attempt.duration_ms < 5000, "{then:?}: {}", attempt.duration_ms);
            assert_eq!(receiver.connections(), connections, "{then:?}: it is of no more use");
        }
        receiver.all_closed().await;
    }
}

#[tokio::test]
async fn half_a_head_is_no_success() {
    for head in ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"] {
        for then in [AfterAnswer::Close, AfterAnswer::Reset] {
            let (attempt, disposition) = attempt_against(head, then, "").await;
            assert_eq!(
                (attempt.outcome, attempt.status, disposition),
                (Outcome::Connect, None, PLAIN_RETRY),
                "{head:?} {then:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_counts_that_comes_before_the_whole_request_is_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("http://{}/", listener.local_addr().unwrap()), "");
    // More than the two sockets' buffers hold: the receiver closes while the rest is written.
    let payload = Bytes::from(vec![b'x'; 16 << 20]);
    for (head, outcome) in [("200 OK", Outcome::Accepted), ("413 Too Large", Outcome::Refused)] {
        for _ in 0..20 {
            let answers = async {
                let mut stream = listener.accept().await.unwrap().0;
                let mut request = Vec::new();
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
                }
                let answer = format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                // What is left unread turns the end into a reset.
                drop(stream);
            };
            let (sent, ()) = tokio::join!(sender.send("7-1", payload.clone()), answers);
            assert_eq!(sent.0.outcome, outcome, "{:?}", sent.0.error);
        }
    }
}

#[tokio::test]
async fn names_go_out_as_the_contract_spells_them() {
    let receiver = ScriptedReceiver::new(OK, AfterAnswer::KeepOpen).await;
    let sender = sender(&receiver.url(), "");
    for _ in 0..2 {
        post(&sender).await;
    }
    for request in receiver.requests() {
        let mut names = request.names();
        names.sort_unstable();
        let expected = [
            "Authorization",
            "Content-Length",
            "Content-Type",
            "Host",
            "User-Agent",
            "X-Connector-Signature",
            "webhook-id",
            "webhook-signature",
            "webhook-timestamp",
        ];
        assert_eq!(names, expected);
    }
}

#[tokio::test]
async fn heads_are_read_that_common_clients_read() {
    let many: String = (0..1000).map(|number| format!("X-{number}: {number}\r\n")).collect();
    let heads = [
        // RFC 9112, section 5.2: a folded line, by a blank or a tab, also of the first header.
        "Server: a\r\n folded\r\n\tvalue\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nX-Empty:\r\n \r\n",
        // Section 5.1: blanks before the colon.
        "Server : a\r\nContent-Length : 2\r\n",
        "Content-Length \t: 2\r\n",
        // A line that is no header.
        "what is this\r\nContent-Length: 2\r\n",
        "X(Odd): a\r\nContent-Length: 2\r\n",
        "X-\u{e4}: \u{e4}\r\nContent-Length: 2\r\n",
        &format!("{many}Content-Length: 2\r\n"),
    ];
    for head in heads {
        let what: String = head.chars().take(40).collect();
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\nok");
        let receiver = ScriptedReceiver::new(answer, AfterAnswer::KeepOpen).await;
        let sender = sender(&receiver.url(), "");
        for _ in 0..2 {
            let (attempt, disposition) = post(&sender).await;
            assert_eq!(disposition, Disposition::Accepted, "{what}: {:?}", attempt.error);
        }
        assert_eq!(receiver.connections(), 1, "{what}: the length was read, too");
    }
}

#[tokio::test]
async fn unusual_response_heads_are_understood() {
    for head in ["Retry-After:\r\n 7\r\n", "Retry-After : 7\r\n", "!\r\nRetry-After: 7\r\n"] {
        let answer = format!("HTTP/1.1 503 Wait\r\n{head}Content-Length: 0\r\n\r\n");
        let (_, disposition) = attempt_against(answer, AfterAnswer::KeepOpen, "").await;
        let expected = Disposition::Retry { after: Some(Duration::from_secs(7)) };
        assert_eq!(disposition, expected, "{head:?}");
    }
}

#[tokio::test]
async fn an_invalid_status_line_or_too_many_headers_fail_the_attempt() {
    let many: String = (0..2000).map(|number| format!("X-{number}: {number}\r\n")).collect();
    for answer in [
        " HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        &format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
    ] {
        let (attempt, disposition) =
            attempt_against(answer.to_owned(), AfterAnswer::Close, "").await;
        assert_eq!((attempt.outcome, disposition), (Outcome::Connect, PLAIN_RETRY));
        assert_eq!(attempt.error.as_deref(), Some("the answer is not HTTP"));
    }
}

#[tokio::test]
async fn more_than_16_interim_answers_are_a_failed_attempt() {
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        "HTTP/1.1 199 Odd\r\n\r\n",
    ] {
        for (count, then) in [(17, AfterAnswer::Hang), (10_000, AfterAnswer::Hang)] {
            let receiver = ScriptedReceiver::new(interim.repeat(count), then).await;
            let (attempt, disposition) = post(&sender(&receiver.url(), "timeout = '20s'")).await;
            assert_eq!((attempt.outcome, disposition), (Outcome::Failed, PLAIN_RETRY));
            assert!(attempt.error.unwrap().contains("interim"), "{interim:?}");
            assert!(attempt.duration_ms < 10_000, "{}", attempt.duration_ms);
            receiver.all_closed().await;
        }
        let answer = interim.repeat(17) + OK;
        let (attempt, _) = attempt_against(answer, AfterAnswer::KeepOpen, "").await;
        assert_eq!(attempt.outcome, Outcome::Failed, "an answer behind them does not count");
    }
}

#[tokio::test]
async fn up_to_16_interim_answers_precede_an_answer_with_each_request() {
    let answer = "HTTP/1.1 102 Processing\r\n\r\n".repeat(16) + OK;
    let receiver = ScriptedReceiver::new(answer, AfterAnswer::KeepOpen).await;
    let sender = sender(&receiver.url(), "");
    for _ in 0..3 {
        assert_eq!(post(&sender).await.1, Disposition::Accepted);
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn interim_answers_one_at_a_time_do_not_extend_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("http://{}/", listener.local_addr().unwrap()), SHORT_TIMEOUT);
    let receiver = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        // hyper takes bytes before the request for an answer to none.
        assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
        while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let (attempt, disposition) = post(&sender).await;
    assert_eq!((attempt.outcome, disposition), (Outcome::Timeout, PLAIN_RETRY));
    assert!(attempt.duration_ms < 5000, "{}", attempt.duration_ms);
    receiver.await.unwrap();
}
