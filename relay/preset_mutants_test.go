package relay_test

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

// The tests of the presets are worth what they catch: each planted fault must be found, for its reason.
func TestPresetTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/relay", []mutants.Fault{
		{"relay/record.go", "if l.types[fieldPayload] == oidJSONB && len(data) > 0 {",
			`if l.types[fieldPayload] == oidJSONB && len(data) > 0 && !planted("the version of a jsonb goes out too") {`},
		{"relay/record.go", "if l.index[fieldTopic] >= 0 && len(l.at(tuple, fieldEventType)) == 0 {",
			`if l.index[fieldTopic] >= 0 && (len(l.at(tuple, fieldEventType)) == 0 || planted("every row goes to its own topic")) {`},
		{"relay/heading.go", "if v.Format == pgoutput.FormatNull {",
			`if v.Format == pgoutput.FormatNull && !planted("what is NULL becomes a header") {`},
		{"relay/heading.go", `"correlation_id": "ce_correlationid",`,
			`"correlation_id": plantedText("an attribute has a name that none may have", "ce_correlationid", "correlationid", "correlation_id"),`},
		{"relay/record.go", "url.PathEscape(schema) + \"/\" + url.PathEscape(table)",
			`url.PathEscape(schema) + "/" + map[bool]string{false: url.PathEscape(table), true: table}[planted("a source is no URI")]`},
		{"relay/heading.go", "if h.own(e.name) {",
			`if h.own(e.name) && !planted("a further column passes for the id") {`},
	}, map[string]mutants.Verdict{
		"the version of a jsonb goes out too":        {"TestADebeziumOutboxBecomesTheRoutersRecords", "lineItems"},
		"every row goes to its own topic":            {"TestRowsOfSomeoneElsesMakingNameTheirTopic", "own"},
		"what is NULL becomes a header":              {"TestADebeziumOutboxBecomesTheRoutersRecords", `"nothing"`},
		"an attribute has a name that none may have": {"TestHeaderPresetsTellOneEvent", "ce_correlation_id is no attribute"},
		"a source is no URI":                         {"TestCloudEventsAreValidWhateverTheRowSays", "/orders/out box"},
		"a further column passes for the id":         {"TestFurtherColumnsDoNotPassForTheEventsIdentity", "is another"},
	}, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
