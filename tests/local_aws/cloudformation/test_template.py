import pytest

from local_aws.cloudformation.template import BadTemplate, Scope, creation_order, parameter_values, read_template

TEXT = """
Parameters:
  Name: {Type: String, Default: pears, AllowedPattern: "[a-z]+", ConstraintDescription: use a-z}
  Kinds: {Type: CommaDelimitedList, Default: "a, b"}
  Days: {Type: Number, Default: 7, MinValue: 1}
  Size: {Type: String, Default: small, AllowedValues: [small, large]}
Conditions:
  Large: !Equals [!Ref Size, large]
  Small: !Not [!Condition Large]
Resources:
  First: {Type: A, Properties: {Name: !Ref Second, Text: !Sub "${Third.Arn}"}}
  Second: {Type: A, DependsOn: Third}
  Third: {Type: A}
"""


def scope(**given: str) -> Scope:
    template = read_template(TEXT)
    found = Scope(template, {**parameter_values(template, given), "AWS::Region": "eu-west-1"}, lambda: ["a", "b"])
    found.refs["Third"], found.attributes["Third"] = "third-1", {"Arn": "arn:third"}
    return found


def resolve(text: str, **given: str) -> object:
    return scope(**given).resolve(read_template(f"Resources: {{A: {{Value: {text}}}}}")["Resources"]["A"]["Value"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("!Ref Name", "pears"),
        ("!Ref Third", "third-1"),
        ("!Ref Kinds", ["a", "b"]),
        ("!GetAtt Third.Arn", "arn:third"),
        ("{Fn::GetAtt: [Third, Arn]}", "arn:third"),
        ('!Sub "s3://${Name}/${!literal}-${AWS::Region}-${Third.Arn}"', "s3://pears/${literal}-eu-west-1-arn:third"),
        ('!Sub ["${a}$${Name}", {a: !Ref Third}]', "third-1$pears"),
        ('!Join ["-", [x, !Ref Name]]', "x-pears"),
        ('!Select [1, !GetAZs ""]', "b"),
        ("!If [Large, yes, !Ref Name]", "pears"),
        ("[a, !If [Large, b, !Ref AWS::NoValue]]", ["a"]),
        ("{a: 1, b: !If [Large, b, !Ref AWS::NoValue]}", {"a": 1}),
        ("!And [!Condition Small, !Equals [!Ref Days, 7]]", True),
        ("!Or [!Condition Large, !Not [!Condition Small]]", False),
    ],
)
def test_a_function_is_replaced_by_its_result(text: str, value: object) -> None:
    assert resolve(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!Ref Plums", "Ref Plums does not exist"),
        ("!GetAtt Third.Name", "Fn::GetAtt Third.Name does not exist"),
        ("!If [Huge, a, b]", "condition Huge is not defined"),
        ("!Base64 text", "does not support the function Fn::Base64"),
    ],
)
def test_a_function_that_has_no_result_is_an_error(text: str, message: str) -> None:
    with pytest.raises(BadTemplate, match=message):
        resolve(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Name": "Pears"}, r"Parameter 'Name' is 'Pears': it must match pattern \[a-z\]\+. use a-z"),
        ({"Size": "huge"}, "'Size' must be one of AllowedValues .*, and is 'huge'"),
        ({"Days": "0"}, "'Days' is 0, which is out of its range"),
        ({"Days": "many"}, "'Days' must be a number, and is 'many'"),
        ({"Color": "red"}, r"\[Color\] do not exist in the template"),
    ],
)
def test_a_wrong_parameter_is_an_error_that_names_it(given: dict[str, str], message: str) -> None:
    with pytest.raises(BadTemplate, match=message):
        scope(**given)


def test_a_parameter_without_a_default_is_required() -> None:
    template = read_template("{Parameters: {Name: {Type: String}}, Resources: {}}")
    with pytest.raises(BadTemplate, match=r"\[Name\] must have values"):
        parameter_values(template, {})


def test_resources_are_created_after_those_that_they_refer_to() -> None:
    assert creation_order(read_template(TEXT)) == ["Third", "Second", "First"]


def test_resources_that_refer_to_each_other_are_an_error() -> None:
    template = read_template("Resources: {A: {Properties: {B: !Ref B}}, B: {DependsOn: [A]}}")
    with pytest.raises(BadTemplate, match="Circular dependency between resources"):
        creation_order(template)


@pytest.mark.parametrize("text", ["", "a", "a: [", "Parameters: {}", "Resources: [a]"])
def test_a_text_without_resources_is_not_a_template(text: str) -> None:
    with pytest.raises(BadTemplate, match="Template format error"):
        read_template(text)
