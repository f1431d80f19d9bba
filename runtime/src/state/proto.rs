//! Protobuf messages inside JSON records.

/// `#[serde(with = "as_base64")]`: a message in its own encoding, which keeps also what this daemon does not know yet.
pub mod as_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use prost::Message;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Encodes the message.
    pub fn serialize<M: Message, S: Serializer>(message: &M, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(message.encode_to_vec()))
    }

    /// Decodes the message.
    pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::PodSandboxMetadata;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        #[serde(with = "super::as_base64")]
        metadata: PodSandboxMetadata,
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let metadata = PodSandboxMetadata { name: "p".into(), uid: "u".into(), namespace: "n".into(), attempt: 3 };
        let text = serde_json::to_string(&Record { metadata: metadata.clone() }).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), Record { metadata });
        assert!(serde_json::from_str::<Record>(r#"{"metadata":"!"}"#).is_err());
    }
}
