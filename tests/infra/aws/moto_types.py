"""What moto's CloudFormation lacks of our template: without these it would leave the resources out and call it done.

Each type calls the service that moto does have. Change sets get what they lack, too: moto's make the resources of a
stack and forget its outputs, parameters and conditions. Where a later moto brings one of them, or changes how types are
registered, `install` raises, and this file is to be made smaller.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import types
from typing import Any, ClassVar
from unittest import mock

import boto3
import yaml
from moto.cloudformation import models, parsing
from moto.core.common_models import CloudFormationModel


@functools.cache
def client_of(service: str, region: str) -> Any:
    """One for the process: a deployment makes thirty, which is a third of what it takes."""
    return boto3.client(service, region_name=region)


class Missing(CloudFormationModel):
    """One resource: its physical id and what GetAtt may ask of it."""

    TYPE: ClassVar[str] = ""

    def __init__(self, physical_id: str, attributes: dict[str, str], properties: dict[str, Any]) -> None:
        self.physical_resource_id = physical_id
        self.attributes = attributes
        self.properties = properties

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @classmethod
    def cloudformation_type(cls) -> str:
        return cls.TYPE

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True

    def get_cfn_attribute(self, name: str) -> str:
        return self.attributes[name]

    @property
    def physical_id(self) -> str:
        return self.physical_resource_id

    @classmethod
    def make(cls, name: str, properties: dict[str, Any], region: str) -> Missing:
        raise NotImplementedError

    @classmethod
    def change(cls, old: Missing, properties: dict[str, Any], region: str) -> Missing:
        raise NotImplementedError

    @classmethod
    def remove(cls, physical_id: str, properties: dict[str, Any], region: str) -> None:
        raise NotImplementedError

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **kwargs: Any
    ) -> Missing:
        return cls.make(resource_name, cloudformation_json["Properties"], region_name)

    @classmethod
    def update_from_cloudformation_json(
        cls,
        original_resource: Missing,
        new_resource_name: str,
        cloudformation_json: Any,
        account_id: str,
        region_name: str,
    ) -> Missing:
        return cls.change(original_resource, cloudformation_json["Properties"], region_name)

    @classmethod
    def delete_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
    ) -> None:
        cls.remove(resource_name, cloudformation_json.get("Properties", {}), region_name)

    def is_created(self) -> bool:
        return True


def _its_function_may_be_gone(client: Any) -> contextlib.AbstractContextManager[None]:
    """Moto deletes in no order."""
    return contextlib.suppress(client.exceptions.ResourceNotFoundException)


class FunctionUrl(Missing):
    TYPE = "AWS::Lambda::Url"

    @classmethod
    def make(cls, name: str, properties: dict[str, Any], region: str) -> Missing:
        function = properties["TargetFunctionArn"]
        client = client_of("lambda", region)
        made = client.create_function_url_config(FunctionName=function, AuthType=properties["AuthType"])
        return cls(function, {"FunctionUrl": made["FunctionUrl"]}, properties)

    @classmethod
    def change(cls, old: Missing, properties: dict[str, Any], region: str) -> Missing:
        return old

    @classmethod
    def remove(cls, physical_id: str, properties: dict[str, Any], region: str) -> None:
        with _its_function_may_be_gone(client := client_of("lambda", region)):
            client.delete_function_url_config(FunctionName=physical_id)


class EventInvokeConfig(Missing):
    TYPE = "AWS::Lambda::EventInvokeConfig"

    @classmethod
    def make(cls, name: str, properties: dict[str, Any], region: str) -> Missing:
        given = {key: value for key, value in properties.items() if key != "Qualifier"}
        given |= {key: int(value) for key, value in given.items() if key.startswith("Maximum")}
        client_of("lambda", region).put_function_event_invoke_config(**given)
        return cls(properties["FunctionName"], {}, properties)

    @classmethod
    def change(cls, old: Missing, properties: dict[str, Any], region: str) -> Missing:
        return cls.make("", properties, region)

    @classmethod
    def remove(cls, physical_id: str, properties: dict[str, Any], region: str) -> None:
        with _its_function_may_be_gone(client := client_of("lambda", region)):
            client.delete_function_event_invoke_config(FunctionName=physical_id)


class Schedule(Missing):
    TYPE = "AWS::Scheduler::Schedule"

    @classmethod
    def make(cls, name: str, properties: dict[str, Any], region: str) -> Missing:
        made = client_of("scheduler", region).create_schedule(Name=name[-64:], **cls._given(properties))
        return cls(name[-64:], {"Arn": made["ScheduleArn"]}, properties)

    @classmethod
    def change(cls, old: Missing, properties: dict[str, Any], region: str) -> Missing:
        client = client_of("scheduler", region)
        client.update_schedule(Name=old.physical_resource_id, **cls._given(properties))
        return cls(old.physical_resource_id, old.attributes, properties)

    @classmethod
    def remove(cls, physical_id: str, properties: dict[str, Any], region: str) -> None:
        client_of("scheduler", region).delete_schedule(Name=physical_id)

    @staticmethod
    def _given(properties: dict[str, Any]) -> dict[str, Any]:
        retries = {key: int(value) for key, value in properties["Target"]["RetryPolicy"].items()}
        return properties | {"Target": properties["Target"] | {"RetryPolicy": retries}}


class MotoSecret(Missing):
    TYPE = "AWS::SecretsManager::Secret"

    @classmethod
    def make(cls, name: str, properties: dict[str, Any], region: str) -> Missing:
        client = client_of("secretsmanager", region)
        given: dict[str, Any] = {"Description": properties["Description"], "Tags": properties["Tags"]}
        if wanted := properties.get("GenerateSecretString"):
            drawn = client.get_random_password(PasswordLength=int(wanted["PasswordLength"]), ExcludePunctuation=True)
            given["SecretString"] = drawn["RandomPassword"]
        made = client.create_secret(Name=name, **given)
        return cls(made["ARN"], {"Id": made["ARN"]}, properties)

    @classmethod
    def change(cls, old: Missing, properties: dict[str, Any], region: str) -> Missing:
        return old

    @classmethod
    def remove(cls, physical_id: str, properties: dict[str, Any], region: str) -> None:
        client_of("secretsmanager", region).delete_secret(SecretId=physical_id)


def _apply(change_set: Any) -> None:
    """As moto itself creates and updates a stack without a change set."""
    stack = change_set.stack
    if change_set.change_set_type == "UPDATE":
        stack.update(change_set.template, change_set.role_arn, change_set.parameters)
        return
    stack.template, stack.parameters = change_set.template, change_set.parameters
    stack._parse_template()
    stack.resource_map = stack._create_resource_map()
    stack.output_map = stack._create_output_map()
    stack.create_resources()


@functools.cache
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=yaml.Loader)


class _Yaml(types.ModuleType):
    """As moto uses it: one template is parsed three times in a deployment, which is half of what that takes."""

    add_multi_constructor = staticmethod(yaml.add_multi_constructor)
    Loader = yaml.Loader

    @staticmethod
    def load(text: str, Loader: type) -> Any:
        return copy.deepcopy(_parsed(text))


_OURS = (FunctionUrl, EventInvokeConfig, Schedule, MotoSecret)


@functools.cache
def install() -> None:
    """Register them, once a process. Raises RuntimeError where moto is no longer as this file knows it."""
    for name in ("get_model_list", "get_model_map", "get_name_type_map"):
        if not hasattr(getattr(parsing, name, None), "cache_clear"):
            raise RuntimeError(f"moto's CloudFormation has changed: {name} is not a cached list of types any more")
    theirs = [model for model in CloudFormationModel.__subclasses__() if model is not Missing]
    also = {model.cloudformation_type() for model in theirs} & {ours.TYPE for ours in _OURS}
    if also:
        raise RuntimeError(f"moto now has {', '.join(sorted(also))} itself: take ours away")
    if "resource_map.update" not in inspect.getsource(models.ChangeSet.apply):
        raise RuntimeError("moto's change sets have changed: see whether ours are still needed")
    for ours in _OURS:
        ours.__module__ = f"moto.ext.{ours.__name__.lower()}"  # moto finds a backend by the module's third part
    everything = [*theirs, *_OURS]
    mock.patch.object(parsing, "get_model_list", lambda: everything).start()  # for the rest of the process
    mock.patch.object(models.ChangeSet, "apply", _apply).start()
    mock.patch.object(models, "yaml", _Yaml("yaml")).start()
    parsing.get_model_map.cache_clear()
    parsing.get_name_type_map.cache_clear()
