pub fn render(_: &crate::EvaluationReport) -> String { String::new() }
