//! Conversations as text, in the template that the model was trained with.

use std::fmt::Write;

use serde::Deserialize;

use super::CaptureError;

/// How a conversation is written as text. The templates are those of the models named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// `<|im_start|>role\ncontent<|im_end|>\n`: ChatML, used by Qwen, SmolLM2 and many others.
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>`: Llama 3.
    Llama3,
    /// `[INST]user[/INST]answer</s>` and `[SYSTEM_PROMPT]`: Mistral from tekken v7 on, Devstral.
    Mistral,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

impl ChatFormat {
    /// The format of a model's `tokenizer.chat_template`, told by its control tokens; ChatML without one,
    /// as llama.cpp does.
    ///
    /// # Errors
    /// [`CaptureError::ChatTemplate`] if it is none of those known here.
    pub fn detect(template: Option<&str>) -> Result<Self, CaptureError> {
        let Some(template) = template else { return Ok(Self::ChatMl) };
        let marks = [
            ("<|im_start|>", Self::ChatMl),
            ("<|start_header_id|>", Self::Llama3),
            ("[SYSTEM_PROMPT]", Self::Mistral),
        ];
        let found = marks.into_iter().find(|(mark, _)| template.contains(mark));
        found.map(|(_, format)| format).ok_or(CaptureError::ChatTemplate)
    }

    fn write(self, out: &mut String, message: &Message) {
        let Message { role, content } = message;
        let written = match (self, role.as_str()) {
            (Self::ChatMl, _) => writeln!(out, "<|im_start|>{role}\n{content}<|im_end|>"),
            (Self::Llama3, _) => {
                let content = content.trim();
                write!(out, "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>")
            }
            (Self::Mistral, "system") => {
                write!(out, "[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]")
            }
            (Self::Mistral, "assistant") => write!(out, "{content}</s>"),
            (Self::Mistral, _) => write!(out, "[INST]{content}[/INST]"),
        };
        written.expect("strings take any text");
    }
}

/// Renders `{"messages": [{"role", "content"}, ...]}` objects, one per line, to text with control tokens.
///
/// # Errors
/// [`CaptureError::Chat`] with the line.
pub fn render_jsonl(lines: &str, format: ChatFormat) -> Result<String, CaptureError> {
    let mut out = String::with_capacity(lines.len());
    for (index, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let error = |reason| CaptureError::Chat { line: index + 1, reason };
        let conversation: Conversation =
            serde_json::from_str(line).map_err(|e| error(e.to_string()))?;
        if conversation.messages.is_empty() {
            return Err(error("no messages".to_owned()));
        }
        conversation.messages.iter().for_each(|message| format.write(&mut out, message));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}

{"id": 2, "messages":[{"role":"user","content":"a\nb"}]}
"#;

    #[test]
    fn conversations_follow_the_template() {
        let chatml = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
                      <|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n";
        assert_eq!(render_jsonl(LINES, ChatFormat::ChatMl).unwrap(), chatml);
        let mistral =
            "[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]Hello</s>[INST]a\nb[/INST]";
        assert_eq!(render_jsonl(LINES, ChatFormat::Mistral).unwrap(), mistral);
        let llama = render_jsonl(LINES, ChatFormat::Llama3).unwrap();
        assert!(llama.starts_with(
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
        ));
    }

    #[test]
    fn formats_are_told_by_their_control_tokens() {
        let detect = |template| ChatFormat::detect(template).ok();
        assert_eq!(detect(None), Some(ChatFormat::ChatMl));
        assert_eq!(detect(Some("{{'<|im_start|>' + role}}")), Some(ChatFormat::ChatMl));
        assert_eq!(detect(Some("'<|start_header_id|>'")), Some(ChatFormat::Llama3));
        assert_eq!(detect(Some("[SYSTEM_PROMPT] [INST]")), Some(ChatFormat::Mistral));
        assert_eq!(detect(Some("<start_of_turn>")), None);
    }

    #[test]
    fn bad_lines_are_named() {
        for bad in ["{}", "text", r#"{"messages":[]}"#, r#"{"messages":[{"role":"user"}]}"#] {
            let lines = format!("{LINES}{bad}");
            let message = render_jsonl(&lines, ChatFormat::ChatMl).unwrap_err().to_string();
            assert!(message.starts_with("line 4: "), "{message}");
            assert_eq!(message.lines().count(), 1);
        }
    }
}
